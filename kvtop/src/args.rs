//! The command line, and what it means in this environment.

use crate::app::{INTERVAL_MAX, INTERVAL_MIN, Screen};
use crate::state::Millis;
use crate::view::theme::{Palette, Theme};
use clap::{Parser, ValueEnum};
use proto::profile::{Profiles, config_path, read_config, tls_files, with_port};
use proto::tls::{ClientFiles, ClientTls};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The live dashboard of a kvd cluster.
///
/// Shows whether reads and writes work, what is at risk and what to do next, as any one node of
/// the cluster sees it. Only reads. Press ? for its keys.
#[derive(Debug, Parser)]
#[command(name = "kvtop", version, after_help = EXIT_CODES)]
pub struct Args {
    /// Profile of kvctl's config file
    #[arg(long, value_name = "NAME", env = "KVCTL_PROFILE")]
    pub profile: Option<String>,

    /// A node to ask; repeat it for more. The others are learned from the first that answers
    /// [default: those of the profile, else 127.0.0.1:7400]
    #[arg(long, value_name = "HOST:PORT", env = "KVCTL_ENDPOINTS", value_delimiter = ',',
          value_parser = endpoint)]
    pub endpoint: Vec<String>,

    /// Connect by TLS, to nodes whose certificates this CA signed (PEM)
    #[arg(long, value_name = "FILE", env = "KVCTL_TLS_CA")]
    pub tls_ca: Option<PathBuf>,

    /// The certificate to show, where the cluster wants one (PEM)
    #[arg(long, value_name = "FILE", env = "KVCTL_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,

    /// Its key (PEM)
    #[arg(long, value_name = "FILE", env = "KVCTL_TLS_KEY")]
    pub tls_key: Option<PathBuf>,

    /// Time between samples, 0.25s to 60s
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub interval: Millis,

    /// Begin with this view
    #[arg(long, value_name = "VIEW", default_value = "overview")]
    pub view: View,

    /// Use colour; signs and words carry the meaning in any case
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub color: When,

    /// Draw with ASCII characters only
    #[arg(long)]
    pub ascii: bool,

    /// Print one frame and exit
    #[arg(long)]
    pub once: bool,

    /// Form of that frame
    #[arg(short, long, value_name = "FORM", default_value = "text", requires = "once")]
    pub output: Output,

    /// Size of that frame [default: the terminal's, else 80x24]
    #[arg(long, value_name = "COLSxROWS", requires = "once", value_parser = size)]
    pub size: Option<(u16, u16)>,

    /// Sample this long before that frame: rates need two samples
    #[arg(long = "for", value_name = "TIME", default_value = "2s", requires = "once", value_parser = sampling)]
    pub sampling: Duration,
}

const EXIT_CODES: &str = "\
Exit codes of --once: 0 all is well, 11 it is not, 6 no node was reachable, 2 bad usage.
Without --once, 0 after q. NO_COLOR turns colour off.";

/// A view, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum View {
    Overview,
    Ring,
    Lag,
    Nodes,
    Moves,
}

impl View {
    /// The screen of that name.
    pub fn screen(self) -> Screen {
        match self {
            Self::Overview => Screen::Overview,
            Self::Ring => Screen::Ring,
            Self::Lag => Screen::Lag,
            Self::Nodes => Screen::Nodes,
            Self::Moves => Screen::Moves,
        }
    }
}

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// Unless NO_COLOR is set or the terminal is dumb
    Auto,
    Always,
    Never,
}

/// Form of a single frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// The screen as plain text
    Text,
    /// The screen with colours
    Ansi,
    /// The facts, for programs
    Json,
}

/// The way to the cluster.
#[derive(Clone, Debug)]
pub struct Way {
    /// Nodes to ask first.
    pub endpoints: Vec<String>,
    /// The files that secure the connection. Read for each connection anew: a dashboard stays open for
    /// longer than some certificates are good.
    pub tls: ClientFiles,
}

impl Way {
    /// To these endpoints, secured by nothing.
    pub fn clear(endpoints: Vec<String>) -> Self {
        Self { endpoints, tls: ClientFiles::default() }
    }
}

impl Args {
    /// The way to the cluster, by flags, environment and kvctl's config file.
    ///
    /// # Errors
    /// In words, if the file or what it names cannot be used.
    pub fn way(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Way, String> {
        let mut profiles = Profiles::default();
        let mut folder = None;
        if let Some((path, must_exist)) = config_path(&variable) {
            let of_file = |why: String| format!("config file {}: {why}", path.display());
            let text = read_config(&path, must_exist).map_err(of_file)?;
            profiles = toml::from_str(&text).map_err(|error| of_file(error.to_string()))?;
            folder = path.parent().map(Path::to_owned);
        }
        let profile = profiles.get(self.profile.as_deref())?;
        let given = ClientFiles {
            ca: self.tls_ca.clone(),
            cert: self.tls_cert.clone(),
            key: self.tls_key.clone(),
        };
        let defaults = &profiles.defaults;
        let tls = tls_files(given, &variable, folder.as_deref(), &profile.tls, &defaults.tls);
        ClientTls::load(&tls).map_err(|error| error.to_string())?;
        let endpoints = match self.endpoint.as_slice() {
            [] => profile.endpoints.or_else(|| defaults.endpoints.clone()),
            given => Some(given.to_vec()),
        };
        let endpoints = endpoints.unwrap_or_else(|| vec!["127.0.0.1".to_owned()]);
        Ok(Way { endpoints: endpoints.iter().map(|it| with_port(it)).collect(), tls })
    }

    /// How things look, given what environment variables say.
    pub fn theme(&self, variable: impl Fn(&str) -> Option<String>) -> Theme {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let term = set("TERM").unwrap_or_default();
        let mono = match self.color {
            When::Never => true,
            When::Always => false,
            When::Auto => set("NO_COLOR").is_some() || term == "dumb",
        };
        let truecolor =
            set("COLORTERM").is_some_and(|depth| depth == "truecolor" || depth == "24bit");
        let palette = match () {
            () if mono => Palette::Mono,
            () if truecolor => Palette::Rgb,
            () if term.contains("256color") => Palette::Indexed,
            () => Palette::Ansi16,
        };
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(set)
            .unwrap_or_default()
            .to_lowercase();
        let utf8 = locale.contains("utf-8") || locale.contains("utf8");
        Theme { palette, ascii: self.ascii || !utf8 || term == "linux" }
    }
}

fn endpoint(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or("expected HOST:PORT")?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err("expected HOST:PORT".into());
    }
    Ok(text.to_owned())
}

fn interval(text: &str) -> Result<Millis, String> {
    let millis = time(text)?.as_millis() as Millis;
    if (INTERVAL_MIN..=INTERVAL_MAX).contains(&millis) {
        Ok(millis)
    } else {
        Err("expected 0.25s to 60s".into())
    }
}

fn sampling(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    if time <= Duration::from_secs(3_600) { Ok(time) } else { Err("expected at most 1h".into()) }
}

/// `2s`, `250ms`, `1.5s`, `1m`; a bare number is seconds.
fn time(text: &str) -> Result<Duration, String> {
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3_600.0), ("", 1.0)];
    let parsed = units.iter().find_map(|(unit, seconds)| {
        let number = text.strip_suffix(unit)?.parse::<f64>().ok()?;
        Duration::try_from_secs_f64(number * seconds).ok()
    });
    parsed.ok_or_else(|| "expected a time such as 2s or 250ms".into())
}

fn size(text: &str) -> Result<(u16, u16), String> {
    let sides = text
        .split_once('x')
        .and_then(|(columns, rows)| Some((columns.parse().ok()?, rows.parse().ok()?)));
    match sides {
        Some((columns @ 1..=1000, rows @ 1..=1000)) => Ok((columns, rows)),
        _ => Err("expected COLSxROWS, such as 120x40".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn theme(args: &[&str], variables: &[(&str, &str)]) -> Theme {
        let args = Args::parse_from([&["kvtop"], args].concat());
        let find = |name: &str| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        };
        args.theme(find)
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn colour_follows_the_flag_then_no_color_then_the_terminal() {
        let utf8 = ("LANG", "en_US.UTF-8");
        assert_eq!(theme(&[], &[utf8, ("NO_COLOR", "1")]).palette, Palette::Mono);
        assert_eq!(
            theme(&["--color", "always"], &[utf8, ("NO_COLOR", "1")]).palette,
            Palette::Ansi16
        );
        assert_eq!(
            theme(&["--color", "never"], &[("COLORTERM", "truecolor")]).palette,
            Palette::Mono
        );
        assert_eq!(theme(&[], &[("TERM", "xterm-256color")]).palette, Palette::Indexed);
        assert_eq!(theme(&[], &[("NO_COLOR", ""), ("COLORTERM", "24bit")]).palette, Palette::Rgb);
    }

    #[test]
    fn ascii_where_unicode_would_be_garbled() {
        assert!(theme(&[], &[]).ascii);
        assert!(theme(&[], &[("LANG", "C")]).ascii);
        assert!(theme(&[], &[("LANG", "en_US.UTF-8"), ("TERM", "linux")]).ascii);
        assert!(!theme(&[], &[("LC_ALL", "C.utf8"), ("LANG", "C")]).ascii);
    }

    #[test]
    fn times_sizes_and_endpoints_are_checked() {
        assert_eq!(interval("1s"), Ok(1_000));
        assert_eq!(interval("250ms"), Ok(250));
        assert!(interval("0.1s").is_err() && interval("2m").is_err() && interval("-1s").is_err());
        assert_eq!(time("1.5"), Ok(Duration::from_millis(1_500)));
        assert!(time("soon").is_err() && time("NaN").is_err() && sampling("9e99s").is_err());
        assert_eq!(size("120x40"), Ok((120, 40)));
        assert!(size("0x40").is_err() && size("120").is_err());
        assert!(
            endpoint("[::1]:7400").is_ok() && endpoint("host").is_err() && endpoint(":1").is_err()
        );
    }
}
