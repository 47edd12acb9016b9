//! Configuration: what a role is told, checked before any port opens.
//!
//! Owns the command line ([`args`]), the order flags > environment > `--config` file > default, and the
//! secrets. It is the only part of the program that reads the environment. Every flag `--some-name` is also
//! the variable `CONVOLAKE_SOME_NAME` and the file's key `some-name`; the file is TOML, may serve several
//! roles, and a key that no command knows is refused.
//!
//! Credentials come by environment or file, never by flag (a command line is readable by every user of the
//! machine). [`Secret`] has no way to print its content.
//!
//! Fails with [`Invalid`], which names the flag, variable or key; the process then exits with 2.

pub mod args;
#[cfg(feature = "sabotage")]
pub mod sabotage;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, FromArgMatches};

use args::Cli;

/// The version, and what else a build has to say of itself.
#[cfg(not(feature = "sabotage"))]
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The version, and what else a build has to say of itself.
#[cfg(feature = "sabotage")]
pub const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " SABOTAGE BUILD: its guards can be taken out; it is for the fault matrix alone"
);

/// A configuration that cannot be used; says which flag, variable or key, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// A value that no log, error or metric can show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }

    /// The content, for the one place that signs or authenticates with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Names of the secrets: environment variables, and in lower case with dashes keys of the file.
const SECRET_NAMES: [&str; 5] = [
    "TWILIO_ACCOUNT_SID",
    "TWILIO_AUTH_TOKEN",
    "TWILIO_API_KEY",
    "TWILIO_API_SECRET",
    "CONVOLAKE_SIGNING_KEYS",
];

/// The secrets that were given, by name.
#[derive(Clone, Default)]
pub struct Secrets(BTreeMap<&'static str, Secret>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Secrets {
    /// The account, where given.
    pub fn account_sid(&self) -> Option<&str> {
        self.get("TWILIO_ACCOUNT_SID")
    }

    /// The account's auth token, where given.
    pub fn auth_token(&self) -> Option<&str> {
        self.get("TWILIO_AUTH_TOKEN")
    }

    /// API key and its secret, where both are given.
    pub fn api_key(&self) -> Option<(String, String)> {
        Some((
            self.get("TWILIO_API_KEY")?.to_owned(),
            self.get("TWILIO_API_SECRET")?.to_owned(),
        ))
    }

    /// User and password for the REST API: an API key and its secret, else account and auth token.
    ///
    /// # Errors
    /// Names the variables to set.
    pub fn basic_auth(&self) -> Result<(String, Secret), Invalid> {
        let account = || {
            Some((
                self.account_sid()?.to_owned(),
                self.auth_token()?.to_owned(),
            ))
        };
        self.api_key()
            .or_else(account)
            .map(|(user, password)| (user, Secret::new(password)))
            .ok_or_else(|| {
                Invalid(
                    "no credentials for the API: set TWILIO_API_KEY and TWILIO_API_SECRET, or \
                     TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN"
                        .to_owned(),
                )
            })
    }

    /// The keys that callbacks are signed with: `CONVOLAKE_SIGNING_KEYS`, else `sha1:` and the auth token.
    ///
    /// # Errors
    /// Names the variables to set; a receiver without a key would refuse, or worse accept, everything.
    pub fn signing_keys(&self) -> Result<Vec<crate::signature::SigningKey>, Invalid> {
        let list = match (self.get("CONVOLAKE_SIGNING_KEYS"), self.auth_token()) {
            (Some(list), _) => list.to_owned(),
            (None, Some(token)) => format!("sha1:{token}"),
            (None, None) => {
                return Err(Invalid(
                    "no key to verify callbacks with: set TWILIO_AUTH_TOKEN or CONVOLAKE_SIGNING_KEYS"
                        .to_owned(),
                ));
            }
        };
        list.split(',')
            .map(|key| {
                crate::signature::SigningKey::parse(key.trim())
                    .map_err(|error| Invalid(format!("CONVOLAKE_SIGNING_KEYS: {error}")))
            })
            .collect()
    }

    /// Fills in what is absent; `dev` and `emulate` have fixed credentials of their own.
    pub fn or_default(mut self, name: &'static str, value: &str) -> Self {
        self.0.entry(name).or_insert_with(|| Secret::new(value));
        self
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(Secret::expose)
            .filter(|value| !value.is_empty())
    }
}

/// Reads the command line, the environment and the `--config` file.
///
/// # Errors
/// [`clap::Error`] for wrong use (and for `--help`, which is not a failure); [`Invalid`] for a bad file.
pub fn load(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<(Cli, Secrets)> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the environment"
    )]
    load_from(arguments, |name| std::env::var(name).ok())
}

fn load_from(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<(Cli, Secrets)> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    #[cfg(feature = "sabotage")]
    sabotage::choose(environment("CONVOLAKE_SABOTAGE"))?;
    let file =
        match config_path(&arguments).or_else(|| environment("CONVOLAKE_CONFIG").map(Into::into)) {
            Some(path) => read_file(&path)?,
            None => BTreeMap::new(),
        };
    let command = command_with_defaults(&file)?;
    let matches = command
        .try_get_matches_from(arguments)
        .map_err(without_secret)?;
    let cli = Cli::from_arg_matches(&matches)?;
    let mut secrets = Secrets::default();
    for name in SECRET_NAMES {
        let given = environment(name).filter(|value| !value.is_empty());
        let value = given.or_else(|| Some(file.get(&file_key(name))?.first()?.clone()));
        if let Some(value) = value {
            secrets.0.insert(name, Secret::new(value));
        }
    }
    Ok((cli, secrets))
}

/// A refused value is repeated in the error, unless it may hold a secret: a property of Kafka, a URL with
/// a user in it.
fn without_secret(mut error: clap::Error) -> clap::Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let property = text(ContextKind::InvalidArg).starts_with("--kafka-property");
    if property || text(ContextKind::InvalidValue).contains('@') {
        let hidden = ContextValue::String("[not shown]".to_owned());
        error.insert(ContextKind::InvalidValue, hidden);
    }
    error
}

fn file_key(variable: &str) -> String {
    variable
        .trim_start_matches("CONVOLAKE_")
        .to_lowercase()
        .replace('_', "-")
}

/// The file must be known before the real parse, because it supplies defaults to it.
fn config_path(arguments: &[OsString]) -> Option<PathBuf> {
    let mut rest = arguments.iter().map(|argument| argument.to_string_lossy());
    while let Some(argument) = rest.next() {
        if argument == "--config" {
            return rest.next().map(|path| PathBuf::from(path.as_ref()));
        }
        if let Some(path) = argument.strip_prefix("--config=") {
            return Some(PathBuf::from(path));
        }
    }
    None
}

fn read_file(path: &PathBuf) -> Result<BTreeMap<String, Vec<String>>, Invalid> {
    let invalid = |what: String| Invalid(format!("--config {}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
    // The parser's own message would quote the line, which may hold a secret.
    let table: toml::Table = toml::from_str(&text).map_err(|error| {
        let line = error
            .span()
            .map_or(0, |span| text[..span.start].lines().count().max(1));
        invalid(format!("line {line}: {}", error.message()))
    })?;
    let mut values = BTreeMap::new();
    for (key, value) in table {
        let list = match value {
            toml::Value::Array(items) => items.iter().map(scalar).collect(),
            other => scalar(&other).map(|one| vec![one]),
        };
        let list = list.ok_or_else(|| {
            invalid(format!(
                "{key}: a text, number, boolean, or a list of these"
            ))
        })?;
        values.insert(key, list);
    }
    Ok(values)
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => None,
    }
}

/// The command line with an environment variable for every flag and the file's values as defaults.
fn command_with_defaults(file: &BTreeMap<String, Vec<String>>) -> Result<clap::Command, Invalid> {
    let mut known: Vec<String> = SECRET_NAMES.iter().map(|name| file_key(name)).collect();
    let mut layer = |command: clap::Command| {
        command.mut_args(|arg| {
            let Some(long) = arg.get_long().map(str::to_owned) else {
                return arg;
            };
            if long == "help" || long == "version" {
                return arg;
            }
            let variable = format!("CONVOLAKE_{}", long.to_uppercase().replace('-', "_"));
            let arg = arg.env(variable).hide_env_values(true);
            let arg = match file.get(&long) {
                // Not shown by --help: the file may hold a password among the Kafka properties.
                Some(values) => arg
                    .default_values(values.clone())
                    .hide_default_value(true)
                    .required(false),
                None => arg,
            };
            known.push(long);
            arg
        })
    };
    let mut command = layer(Cli::command());
    let names: Vec<String> = command
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    for name in names {
        command = command.mut_subcommand(name, &mut layer);
    }
    match file.keys().find(|key| !known.contains(key)) {
        Some(key) => Err(Invalid(format!(
            "--config: no command has a setting named {key:?}"
        ))),
        None => Ok(command),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use args::Command;

    const RECEIVE: &[&str] = &[
        "convolake",
        "receive",
        "--public-url",
        "https://a.example/hook",
        "--kafka",
        "k:9092",
    ];

    fn load_with(
        arguments: &[&str],
        file: Option<&str>,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<(Cli, Secrets)> {
        let folder = tempfile::tempdir().unwrap();
        let mut arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        if let Some(text) = file {
            let path = folder.path().join("convolake.toml");
            std::fs::write(&path, text).unwrap();
            arguments.extend(["--config".into(), path.into()]);
        }
        load_from(arguments, |name| {
            environment
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    fn listen(cli: Cli) -> String {
        match cli.command {
            Command::Receive(receive) => receive.listen.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        command_with_defaults(&BTreeMap::new())
            .unwrap()
            .debug_assert();
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let (cli, _) = load_with(RECEIVE, Some("listen = \"127.0.0.1:1\""), &[]).unwrap();
        assert_eq!(listen(cli), "127.0.0.1:1");
        let flagged = [RECEIVE, &["--listen", "127.0.0.1:2"]].concat();
        let (cli, _) = load_with(&flagged, Some("listen = \"127.0.0.1:1\""), &[]).unwrap();
        assert_eq!(listen(cli), "127.0.0.1:2");
    }

    #[test]
    fn a_file_can_supply_what_is_required() {
        let file = "public-url = \"https://a.example/hook\"\nkafka = \"k:9092\"\nlake = \"x\"";
        let (cli, _) = load_with(&["convolake", "receive"], Some(file), &[]).unwrap();
        assert!(matches!(cli.command, Command::Receive(_)));
    }

    #[test]
    fn unknown_keys_and_bad_values_are_named() {
        let error = load_with(RECEIVE, Some("listne = \"127.0.0.1:1\""), &[]).unwrap_err();
        assert!(error.to_string().contains("listne"), "{error}");
        let error = load_with(RECEIVE, Some("listen = \"nowhere\""), &[]).unwrap_err();
        assert!(error.to_string().contains("--listen"), "{error}");
        let error = load_with(RECEIVE, Some("listen = {}"), &[]).unwrap_err();
        assert!(error.to_string().contains("listen"), "{error}");
    }

    #[test]
    fn secrets_come_from_environment_or_file_and_print_nothing() {
        let file = "twilio-auth-token = \"from-file\"\nsigning-keys = \"sha256:s3cret\"";
        let (_, secrets) =
            load_with(RECEIVE, Some(file), &[("TWILIO_AUTH_TOKEN", "from-env")]).unwrap();
        assert_eq!(secrets.auth_token(), Some("from-env"));
        assert_eq!(secrets.signing_keys().unwrap().len(), 1);
        let printed = format!("{secrets:?}");
        assert!(
            !printed.contains("from-env") && !printed.contains("s3cret"),
            "{printed}"
        );
    }

    #[test]
    fn a_broken_file_does_not_leak_its_line() {
        let error = load_with(RECEIVE, Some("twilio-auth-token = \"canary"), &[]).unwrap_err();
        assert!(!error.to_string().contains("canary"), "{error}");
    }

    #[test]
    fn missing_credentials_name_the_variables() {
        let none = Secrets::default();
        assert!(
            none.signing_keys()
                .unwrap_err()
                .to_string()
                .contains("TWILIO_AUTH_TOKEN")
        );
        assert!(
            none.basic_auth()
                .unwrap_err()
                .to_string()
                .contains("TWILIO_API_KEY")
        );
    }
}
