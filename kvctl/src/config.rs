//! Settings: flag, else environment, else profile, else file, else built in.

use crate::cli::Global;
use crate::error::{Failure, Shape};
use crate::exit::Exit;
use crate::output::{Color, Format};
use crate::time::parse_duration;
use clap::ValueEnum;
use proto::profile::{Profiles, config_path, read_config, tls_files, with_port};
use proto::tls::{ClientFiles, ClientTls};
use serde::Deserialize;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const KEYSPACE: &str = "default";
/// Longest wait for an answer where nothing else is said.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What a command goes by.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub endpoints: Vec<String>,
    /// Whether the endpoints were typed, rather than found in the environment or a file.
    pub endpoints_typed: bool,
    /// Start of the id of the only cluster the profile is for.
    pub cluster_id: Option<String>,
    pub keyspace: String,
    pub format: Format,
    pub timeout: Duration,
    /// The timeout that was typed: of a command that waits, it bounds the whole wait.
    pub wait_timeout: Option<Duration>,
    pub connect_timeout: Duration,
    pub color_stdout: bool,
    pub color_stderr: bool,
    pub ascii: bool,
    pub quiet: bool,
    pub verbose: bool,
    pub yes: bool,
    /// Whether there is nobody to ask.
    pub unattended: bool,
    /// Where member addresses are kept; none without a home directory.
    pub seeds: Option<PathBuf>,
    /// What secures the connection; nothing, unless configured.
    pub tls: Option<ClientTls>,
    pub parting: Parting,
}

/// What is said when a signal ends the command: what goes on without it, and how to see it again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parting(Arc<Mutex<Option<String>>>);

impl Parting {
    /// Words for a signal that comes from now on.
    pub(crate) fn set(&self, words: String) {
        if let Ok(mut kept) = self.0.lock() {
            *kept = Some(words);
        }
    }

    /// Says them, on a line of their own: a bar may be in the one above.
    pub(crate) fn say(&self) {
        if let Ok(kept) = self.0.lock()
            && let Some(words) = &*kept
        {
            let _ = writeln!(io::stderr(), "\n{}", crate::output::printable(words));
        }
    }
}

/// The config file. kvtop reads it too, so what is unknown here is left alone.
#[derive(Debug, Default, Deserialize)]
struct File {
    output: Option<String>,
    timeout: Option<String>,
    connect_timeout: Option<String>,
    color: Option<String>,
    #[serde(flatten)]
    profiles: Profiles,
}

impl Settings {
    /// Settles every setting. `env` looks up a variable; an empty one counts as absent.
    pub(crate) fn resolve(
        flags: &Global,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Failure> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let (file, folder) = read(&env)?;
        let wanted = flags.profile.clone().or_else(|| env("KVCTL_PROFILE"));
        let profile = file.profiles.get(wanted.as_deref());
        let profile = profile.map_err(|why| Failure::new(Exit::Usage, "CONFIG", why))?;
        let defaults = file.profiles.defaults;
        let given = ClientFiles {
            ca: flags.tls_ca.clone(),
            cert: flags.tls_cert.clone(),
            key: flags.tls_key.clone(),
        };
        let files = tls_files(given, env, folder.as_deref(), &profile.tls, &defaults.tls);
        let tls = ClientTls::load(&files).map_err(|error| {
            Failure::new(Exit::Usage, "CONFIG", error.to_string()).advice(
                "--tls-ca FILE, and --tls-cert FILE with --tls-key FILE where the cluster wants them",
            )
        })?;

        let endpoints = some_of(flags.endpoint.clone())
            .or_else(|| env("KVCTL_ENDPOINTS").and_then(|list| some_of(split(&list))))
            .or(profile.endpoints)
            .or(defaults.endpoints)
            .unwrap_or_else(|| vec!["127.0.0.1".to_owned()]);
        let timeout = duration("timeout", env("KVCTL_TIMEOUT").or(file.timeout))?;
        let connect_timeout = duration("connect_timeout", file.connect_timeout)?;
        let color = color(flags, &env, file.color)?;
        let format = choice("output", env("KVCTL_OUTPUT").or(file.output))?;
        let colored = |terminal: bool| match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal,
        };
        Ok(Self {
            endpoints: endpoints.iter().map(|endpoint| with_port(endpoint)).collect(),
            endpoints_typed: !flags.endpoint.is_empty(),
            cluster_id: profile.cluster_id.or(defaults.cluster_id),
            keyspace: flags
                .keyspace
                .clone()
                .or_else(|| env("KVCTL_KEYSPACE"))
                .or(profile.keyspace)
                .or(defaults.keyspace)
                .unwrap_or_else(|| KEYSPACE.to_owned()),
            format: flags.output.or(format).unwrap_or_default(),
            timeout: flags.timeout.or(timeout).unwrap_or(TIMEOUT),
            wait_timeout: flags.timeout,
            connect_timeout: flags.connect_timeout.or(connect_timeout).unwrap_or(CONNECT_TIMEOUT),
            color_stdout: colored(io::stdout().is_terminal()),
            color_stderr: colored(io::stderr().is_terminal()),
            ascii: flags.ascii,
            quiet: flags.quiet,
            verbose: flags.verbose,
            yes: flags.yes,
            unattended: flags.no_input
                || env("CI").is_some_and(|ci| ci == "true")
                || !(io::stdin().is_terminal() && io::stderr().is_terminal()),
            seeds: directory(&env, "XDG_STATE_HOME", ".local/state").map(|dir| dir.join("seeds")),
            tls,
            parting: Parting::default(),
        })
    }

    /// How errors are printed.
    pub(crate) fn shape(&self) -> Shape {
        Shape { json: self.format.is_json(), verbose: self.verbose, color: self.color_stderr }
    }
}

/// The file, and where it is.
fn read(env: &impl Fn(&str) -> Option<String>) -> Result<(File, Option<PathBuf>), Failure> {
    let Some((path, must_exist)) = config_path(env) else {
        return Ok((File::default(), None));
    };
    let text = read_config(&path, must_exist).map_err(|why| config_error(&path, &why))?;
    let file = toml::from_str(&text).map_err(|error| config_error(&path, &error.to_string()))?;
    Ok((file, path.parent().map(Path::to_owned)))
}

fn config_error(path: &Path, why: &str) -> Failure {
    Failure::new(Exit::Usage, "CONFIG", format!("config file {} cannot be used", path.display()))
        .why(why.trim())
}

fn directory(env: &impl Fn(&str) -> Option<String>, xdg: &str, usual: &str) -> Option<PathBuf> {
    let base = env(xdg).map(PathBuf::from).or_else(|| {
        let home = env("HOME")?;
        Some(Path::new(&home).join(usual))
    });
    base.map(|base| base.join("kvctl"))
}

fn some_of(list: Vec<String>) -> Option<Vec<String>> {
    let list: Vec<String> = list.into_iter().filter(|item| !item.is_empty()).collect();
    (!list.is_empty()).then_some(list)
}

fn split(list: &str) -> Vec<String> {
    list.split(',').map(|item| item.trim().to_owned()).collect()
}

fn color(
    flags: &Global,
    env: &impl Fn(&str) -> Option<String>,
    file: Option<String>,
) -> Result<Color, Failure> {
    if let Some(color) = flags.color {
        return Ok(color);
    }
    if env("NO_COLOR").is_some() {
        return Ok(Color::Never);
    }
    if env("CLICOLOR_FORCE").is_some_and(|force| force != "0") {
        return Ok(Color::Always);
    }
    Ok(choice("color", file)?.unwrap_or_default())
}

fn duration(name: &str, text: Option<String>) -> Result<Option<Duration>, Failure> {
    text.map(|text| {
        parse_duration(&text).map_err(|why| Failure::usage(format!("{name} {text:?} {why}")))
    })
    .transpose()
}

fn choice<T: ValueEnum>(name: &str, text: Option<String>) -> Result<Option<T>, Failure> {
    text.map(|text| {
        T::from_str(&text, false)
            .map_err(|_| Failure::usage(format!("{name} {text:?} is not one of those it may be")))
    })
    .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        endpoints = ["file:1"]
        keyspace = "of-file"
        timeout = "3s"
        something_of_kvtop = true
        [profiles.prod]
        endpoints = ["prod:1", "prod2"]
        cluster_id = "5d0c91e2"
    "#;

    fn resolve(flags: &Global, vars: &[(&str, &str)]) -> Result<Settings, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, FILE).unwrap();
        let env = |name: &str| match name {
            "KVCTL_CONFIG" => Some(path.display().to_string()),
            name => vars.iter().find(|(var, _)| *var == name).map(|(_, value)| (*value).to_owned()),
        };
        Settings::resolve(flags, &env)
    }

    #[test]
    fn flag_then_environment_then_profile_then_file() {
        let mut flags = Global::default();
        let settings = resolve(&flags, &[]).unwrap();
        assert_eq!(settings.endpoints, ["file:1"]);
        assert_eq!(settings.keyspace, "of-file");
        assert_eq!(settings.timeout, Duration::from_secs(3));

        let prod = ("KVCTL_PROFILE", "prod");
        let settings = resolve(&flags, &[prod]).unwrap();
        assert_eq!(settings.endpoints, ["prod:1", "prod2:7400"]);
        assert_eq!(settings.cluster_id.as_deref(), Some("5d0c91e2"));
        assert_eq!(settings.keyspace, "of-file");

        let vars = [
            prod,
            ("KVCTL_ENDPOINTS", "a:1, b:2"),
            ("KVCTL_KEYSPACE", "of-env"),
            ("KVCTL_TIMEOUT", "500ms"),
            ("KVCTL_OUTPUT", "json"),
        ];
        let settings = resolve(&flags, &vars).unwrap();
        assert_eq!(settings.endpoints, ["a:1", "b:2"]);
        assert_eq!(settings.keyspace, "of-env");
        assert_eq!(settings.format, Format::Json);
        assert_eq!(settings.timeout, Duration::from_millis(500));

        flags.endpoint = vec!["[::1]".into()];
        flags.keyspace = Some("of-flag".into());
        flags.output = Some(Format::Tsv);
        let settings = resolve(&flags, &vars).unwrap();
        assert_eq!(settings.endpoints, ["[::1]:7400"]);
        assert_eq!(settings.keyspace, "of-flag");
        assert_eq!(settings.format, Format::Tsv);
    }

    #[test]
    fn what_is_built_in_needs_no_file_and_no_home() {
        let settings = Settings::resolve(&Global::default(), &|_| None).unwrap();
        assert_eq!(settings.endpoints, ["127.0.0.1:7400"]);
        assert_eq!(settings.keyspace, "default");
        assert!(settings.seeds.is_none());
    }

    #[test]
    fn colour_is_on_or_off_as_the_nearest_level_says() {
        let colored = |flags: &Global, vars: &[(&str, &str)]| {
            let settings = resolve(flags, vars).unwrap();
            (settings.color_stdout, settings.color_stderr)
        };
        let force = ("CLICOLOR_FORCE", "1");
        let mut flags = Global::default();
        assert_eq!(colored(&flags, &[force]), (true, true));
        assert_eq!(colored(&flags, &[force, ("NO_COLOR", "1")]), (false, false));
        flags.color = Some(Color::Always);
        assert_eq!(colored(&flags, &[("NO_COLOR", "1")]), (true, true));
    }

    #[test]
    fn what_cannot_be_used_is_said_in_words() {
        let exit = |vars: &[(&str, &str)]| resolve(&Global::default(), vars).unwrap_err().exit;
        assert_eq!(exit(&[("KVCTL_PROFILE", "nope")]), Exit::Usage);
        assert_eq!(exit(&[("KVCTL_TIMEOUT", "soon")]), Exit::Usage);
        assert_eq!(exit(&[("KVCTL_OUTPUT", "xml")]), Exit::Usage);
        let missing = |name: &str| (name == "KVCTL_CONFIG").then(|| "/nonexistent/c".to_owned());
        let failure = Settings::resolve(&Global::default(), &missing).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
    }
}
