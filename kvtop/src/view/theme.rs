//! Signs, and colours that only add to them.

use crate::state::Level;
use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier, Style};

/// Colours a terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Palette {
    /// None at all: no cell has a foreground or background. Filtering colours out later would not
    /// do: with `NO_COLOR` crossterm writes a bare reset, which takes the modifiers with it.
    Mono,
    Ansi16,
    Indexed,
    Rgb,
}

/// How things look.
#[derive(Clone, Copy, Debug)]
pub struct Theme {
    pub palette: Palette,
    /// Nothing but ASCII on screen.
    pub ascii: bool,
}

impl Theme {
    /// No colour, all signs.
    pub const MONO: Self = Self { palette: Palette::Mono, ascii: false };

    /// Orange and vermillion of Okabe and Ito, which nobody confuses; what is well has no colour.
    pub fn level(&self, level: Level) -> Style {
        let color = match level {
            Level::Ok | Level::Unknown => return Style::new(),
            Level::Warn => [Color::Yellow, Color::Indexed(214), Color::Rgb(230, 159, 0)],
            Level::Critical => [Color::LightRed, Color::Indexed(166), Color::Rgb(213, 94, 0)],
        };
        let style = self.foreground(color);
        if level == Level::Critical { style.add_modifier(Modifier::BOLD) } else { style }
    }

    /// Sky blue, for what is about kvtop itself.
    pub fn note(&self) -> Style {
        self.foreground([Color::Cyan, Color::Indexed(74), Color::Rgb(86, 180, 233)])
    }

    /// Titles and labels.
    pub fn dim(&self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub fn bold(&self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// The selected row, and banners.
    pub fn reversed(&self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// Last step of every frame: what an ASCII terminal cannot show is replaced, whoever drew it.
    pub fn finish(&self, buf: &mut Buffer) {
        if !self.ascii {
            return;
        }
        for cell in &mut buf.content {
            if !cell.symbol().is_ascii() {
                let plain = ascii(cell.symbol());
                cell.set_char(plain);
            }
        }
    }

    fn foreground(&self, [ansi16, indexed, rgb]: [Color; 3]) -> Style {
        match self.palette {
            Palette::Mono => Style::new(),
            Palette::Ansi16 => Style::new().fg(ansi16),
            Palette::Indexed => Style::new().fg(indexed),
            Palette::Rgb => Style::new().fg(rgb),
        }
    }
}

/// The sign of a level.
pub fn sign(level: Level) -> &'static str {
    match level {
        Level::Ok => "·",
        Level::Unknown => "?",
        Level::Warn => "▲",
        Level::Critical => "✖",
    }
}

/// The sign of what is on its way to another node.
pub const MOVING: &str = "»";

/// Heights of a sparkline, from nothing to the most.
pub const SPARKS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

fn ascii(symbol: &str) -> char {
    const SPARKS_ASCII: [char; 8] = ['_', '.', ':', '-', '=', '+', '*', '#'];
    if let Some(height) = SPARKS.iter().position(|spark| *spark == symbol) {
        return SPARKS_ASCII[height];
    }
    match symbol {
        "·" | "░" | "•" => '.',
        "▲" => '!',
        "✖" => 'X',
        "»" | "→" => '>',
        "…" => '~',
        "─" | "–" => '-',
        "│" | "┊" => '|',
        "┌" | "┐" | "└" | "┘" | "├" | "┤" | "┬" | "┴" | "┼" => '+',
        "▌" | "▐" => '=',
        _ => '?',
    }
}
