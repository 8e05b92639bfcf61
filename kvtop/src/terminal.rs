//! The terminal: taken over while the dashboard runs, given back however it ends.

use crossterm::cursor::{Hide, Show};
use crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
    disable_raw_mode, enable_raw_mode,
};
use crossterm::{execute, queue};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use std::io::{self, Stdout, Write, stdout};
use std::sync::atomic::{AtomicBool, Ordering};

/// True while the terminal is ours: it is given back once, whoever comes first of the panic hook
/// and [`Screen`]'s drop.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal, in raw mode and on the alternate screen, until this is dropped.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal over.
    pub fn take() -> io::Result<Self> {
        // With NO_COLOR crossterm writes a bare reset in place of every colour change, which would
        // erase the selection. The theme already leaves colours out.
        crossterm::style::force_color_output(true);
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            earlier(panic);
        }));
        TAKEN.store(true, Ordering::SeqCst);
        let taken = enable_raw_mode()
            .and_then(|()| execute!(stdout(), EnterAlternateScreen, Hide))
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        match taken {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }

    /// Draws a frame, as one update.
    pub fn draw(&mut self, paint: impl FnOnce(Rect, &mut Buffer)) -> io::Result<()> {
        queue!(stdout(), BeginSynchronizedUpdate)?;
        self.terminal.draw(|frame| paint(frame.area(), frame.buffer_mut()))?;
        execute!(stdout(), EndSynchronizedUpdate)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives the terminal back as it was. Does nothing the second time.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // There is nobody left to tell if it fails.
        let _ = leave(&mut stdout());
        let _ = disable_raw_mode();
    }
}

fn leave(out: &mut impl Write) -> io::Result<()> {
    execute!(out, EndSynchronizedUpdate, LeaveAlternateScreen, Show)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_ends_the_alternate_screen_and_shows_the_cursor() {
        let mut out = Vec::new();
        leave(&mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("\x1b[?1049l") && out.contains("\x1b[?25h"), "{out:?}");
    }

    #[test]
    fn what_was_never_taken_is_not_given_back() {
        give_back();
        assert!(!TAKEN.load(Ordering::SeqCst));
    }
}
