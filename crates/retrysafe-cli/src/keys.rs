//! `retrysafe keys`: what operators need when an outcome is unknown.
//!
//! Records are named as logs and traces show them (`idem_` and 16 hex digits), or by all 64 digits.
//! Every change is an event on the tracing target `retrysafe::audit`.

mod answer;
mod show;

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use retrysafe::{
    Entry, OperationId, OperationPrefix, State, StoreError,
    store::{DynInspect, Operated, Resolution},
};

use self::answer::AnswerFlags;
use crate::{
    Failure,
    config::{ConfigError, Span},
    say, store,
};

/// How many records are asked for at once.
const PAGE: usize = 256;

/// The flags of `retrysafe keys`.
#[derive(Args)]
pub(crate) struct KeysFlags {
    /// The store that holds the records
    #[arg(
        long,
        env = "RETRYSAFE_STORE",
        value_name = "URL",
        global = true,
        default_value = "sqlite:retrysafe.db",
        hide_env_values = true
    )]
    store: String,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Subcommand)]
enum KeysCommand {
    /// Lists records in the order of their ids
    List {
        /// Only records in this state
        #[arg(long)]
        state: Option<StateName>,
        /// At most so many
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: usize,
    },
    /// Shows one record; never its key or body
    Show {
        /// idem_ and 16 hex digits, or 64 hex digits
        id: String,
    },
    /// Frees a key whose answer should no longer be given: a retry runs the operation again
    Forget {
        /// idem_ and 16 hex digits, or 64 hex digits
        id: String,
    },
    /// Says what became of an operation whose outcome is unknown
    Resolve(Box<ResolveFlags>),
}

#[derive(Args)]
struct ResolveFlags {
    /// idem_ and 16 hex digits, or 64 hex digits
    id: String,
    /// It did not happen: a retry runs it
    #[arg(
        long,
        conflicts_with_all = ["happened", "status", "headers", "body", "trailers", "retention"]
    )]
    did_not_happen: bool,
    /// It happened: retries get this answer
    #[arg(long, requires = "status")]
    happened: bool,
    /// The attempt that was looked into, if it has to be the newest still
    #[arg(long, value_name = "NUMBER")]
    attempt: Option<u32>,
    /// How long the answer is kept
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    retention: Span,
    #[command(flatten)]
    answer: AnswerFlags,
}

/// The states of records, as operators name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StateName {
    /// An attempt holds a live lease.
    InFlight,
    /// Nobody knows what the newest attempt did.
    Unknown,
    /// The outcome is kept.
    Finished,
    /// Free; only the counters are left.
    Released,
}

impl StateName {
    fn of(state: &State) -> Self {
        match state {
            State::InFlight { .. } => Self::InFlight,
            State::Lapsed => Self::Unknown,
            State::Finished { .. } => Self::Finished,
            State::Released => Self::Released,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::InFlight => "in-flight",
            Self::Unknown => "unknown",
            Self::Finished => "finished",
            Self::Released => "released",
        }
    }
}

/// Runs one command.
///
/// # Errors
///
/// If the store can't be opened or asked, or the record is not there or not in a state for this.
pub(crate) async fn run(flags: KeysFlags) -> Result<(), Failure> {
    if let KeysCommand::Resolve(flags) = &flags.command
        && !(flags.did_not_happen || flags.happened)
    {
        return Err(ConfigError::new(
            "say what became of it: --did-not-happen, or --happened --status STATUS with the \
             answer that retries get",
        )
        .into());
    }
    let inspect = store::open_existing(&flags.store).await?.inspect;
    let records = Records { inspect: &*inspect, json: flags.json };
    match flags.command {
        KeysCommand::List { state, limit } => records.list(state, limit).await,
        KeysCommand::Show { id } => {
            let entry = records.find(&id).await?;
            say(&show::in_full(&entry, flags.json));
            Ok(())
        }
        KeysCommand::Forget { id } => records.forget(&id).await,
        KeysCommand::Resolve(resolve) => records.resolve(*resolve).await,
    }
}

struct Records<'a> {
    inspect: &'a dyn DynInspect,
    json: bool,
}

impl Records<'_> {
    async fn list(&self, state: Option<StateName>, limit: usize) -> Result<(), Failure> {
        let (mut shown, mut after) = (0, None);
        loop {
            let page = self.inspect.page(after.as_ref(), PAGE).await.map_err(failed)?;
            let last_page = page.len() < PAGE;
            after = page.last().map(|entry| entry.id).or(after);
            for entry in page {
                if state.is_some_and(|state| state != StateName::of(&entry.state)) {
                    continue;
                }
                if shown == limit {
                    if !self.json {
                        say(&format!("... and more: --limit shows more than {limit}"));
                    }
                    return Ok(());
                }
                say(&show::in_a_line(&entry, self.json));
                shown += 1;
            }
            if last_page {
                break;
            }
        }
        if shown == 0 && !self.json {
            say("no such records");
        }
        Ok(())
    }

    /// The one record that is named.
    async fn find(&self, name: &str) -> Result<Entry, Failure> {
        let missing = || {
            Failure::Run(format!(
                "there is no record {name}: it has expired, or it is in another store"
            ))
        };
        if let Some(id) = full_id(name) {
            return self.inspect.get(&id).await.map_err(failed)?.ok_or_else(missing);
        }
        let prefix: OperationPrefix =
            name.parse().map_err(|error| ConfigError::new(format!("`{name}`: {error}")))?;
        let first = prefix.first();
        let mut found: Vec<Entry> =
            self.inspect.get(&first).await.map_err(failed)?.into_iter().collect();
        let following = self.inspect.page(Some(&first), PAGE).await.map_err(failed)?;
        found.extend(following.into_iter().take_while(|entry| prefix.matches(&entry.id)));
        match found.len() {
            0 => Err(missing()),
            1 => Ok(found.remove(0)),
            count => {
                let ids: Vec<_> = found.iter().map(|entry| show::hex(&entry.id)).collect();
                Err(Failure::Run(format!(
                    "{name} names {count} records; give all digits of one: {}",
                    ids.join(", ")
                )))
            }
        }
    }

    async fn forget(&self, name: &str) -> Result<(), Failure> {
        let entry = self.find(name).await?;
        // It may turn out to have happened while somebody thinks that it did not.
        if let State::Lapsed = entry.state {
            return Err(Failure::Run(format!(
                "nobody knows what attempt {} of {} did: look, and then say it with `keys resolve`",
                entry.attempt, entry.id
            )));
        }
        let operated = self.inspect.forget(&entry.id).await.map_err(failed)?;
        self.audit("forget", &entry, operated);
        match operated {
            Operated::Applied => {
                self.done(&entry, "forgotten", "is forgotten: a retry runs it again");
                Ok(())
            }
            Operated::NotFound => {
                Err(Failure::Run(format!("there is nothing to forget of {}", entry.id)))
            }
            Operated::Refused => Err(Failure::Run(format!(
                "{} is in flight: an attempt holds its lease, wait until it ends",
                entry.id
            ))),
        }
    }

    async fn resolve(&self, flags: ResolveFlags) -> Result<(), Failure> {
        let entry = self.find(&flags.id).await?;
        let (resolution, done) = if flags.did_not_happen {
            (Resolution::DidNotHappen, "did not happen: a retry runs it")
        } else {
            let payload = flags.answer.payload()?;
            let retention = at_least_a_second(flags.retention.0)?;
            (Resolution::Happened { payload, retention }, "happened: retries get this answer")
        };
        let seen = flags.attempt.unwrap_or(entry.attempt);
        let operated = self.inspect.resolve(&entry.id, seen, resolution).await.map_err(failed)?;
        let action = if flags.did_not_happen { "did-not-happen" } else { "happened" };
        self.audit(action, &entry, operated);
        match operated {
            Operated::Applied => {
                self.done(&entry, "resolved", done);
                Ok(())
            }
            Operated::NotFound => {
                Err(Failure::Run(format!("there is no record {} any more", entry.id)))
            }
            Operated::Refused if seen != entry.attempt => Err(Failure::Run(format!(
                "{}: attempt {seen} is not the newest, {} is: look into that one",
                entry.id, entry.attempt
            ))),
            Operated::Refused => Err(Failure::Run(format!(
                "{} is {}: only an unknown outcome can be resolved",
                entry.id,
                StateName::of(&entry.state).as_str()
            ))),
        }
    }

    fn audit(&self, action: &'static str, entry: &Entry, operated: Operated) {
        tracing::info!(
            target: "retrysafe::audit",
            operation = %entry.id,
            attempt = entry.attempt,
            action,
            result = match operated {
                Operated::Applied => "applied",
                Operated::NotFound => "not-found",
                Operated::Refused => "refused",
            },
            "operator",
        );
    }

    fn done(&self, entry: &Entry, result: &str, sentence: &str) {
        if self.json {
            let id = entry.id.to_string();
            say(&serde_json::json!({ "operation": id, "result": result }).to_string());
        } else {
            say(&format!("{} {sentence}", entry.id));
        }
    }
}

fn full_id(name: &str) -> Option<OperationId> {
    let mut id = [0; 32];
    if name.len() != 64 || !name.is_ascii() {
        return None;
    }
    for (byte, digits) in id.iter_mut().zip(name.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).ok()?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(OperationId::from_bytes(id))
}

fn failed(error: StoreError) -> Failure {
    Failure::Run(crate::chain(&error))
}

fn at_least_a_second(retention: Duration) -> Result<Duration, ConfigError> {
    if retention < Duration::from_secs(1) {
        return Err(ConfigError::new("--retention: must be a second at least"));
    }
    Ok(retention)
}
