//! The stream: its settings, and what each of them is for.

use async_nats::jetstream::stream::{
    Config, DiscardPolicy, PersistenceMode, Republish, RetentionPolicy, StorageType,
};
use retrysafe_core::OperationId;

/// The subjects of a stream's records: `STREAM.xx.yyyy...`, the id in hex digits. The first byte is
/// a token of its own, so that a large stream can be paged through in parts and in order.
#[derive(Clone, Debug)]
pub(crate) struct Subjects {
    stream: String,
}

impl Subjects {
    pub(crate) fn of(stream: &str) -> Self {
        Self { stream: stream.to_owned() }
    }

    pub(crate) fn record(&self, id: &OperationId) -> String {
        let mut subject = String::with_capacity(self.stream.len() + 66);
        subject.push_str(&self.stream);
        push_tokens(&mut subject, id);
        subject
    }

    /// Where the server repeats the head of what it has stored.
    pub(crate) fn changed(&self, id: &OperationId) -> String {
        let mut subject = format!("{}.changed", self.stream);
        push_tokens(&mut subject, id);
        subject
    }

    pub(crate) fn all(&self) -> String {
        format!("{}.*.*", self.stream)
    }

    /// Those whose id begins with this byte.
    pub(crate) fn beginning_with(&self, first: u8) -> String {
        format!("{}.{first:02x}.*", self.stream)
    }

    /// The id of a record's subject; `None` if the subject is not ours.
    pub(crate) fn id(&self, subject: &str) -> Option<OperationId> {
        let digits = subject.strip_prefix(&self.stream)?.strip_prefix('.')?;
        let (first, rest) = digits.split_once('.')?;
        let mut id = [0; 32];
        let (head, tail) = id.split_at_mut(1);
        from_hex(first, head)?;
        from_hex(rest, tail)?;
        Some(OperationId::from_bytes(id))
    }

    fn republish(&self) -> Republish {
        Republish {
            source: self.all(),
            destination: format!("{}.changed.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}", self.stream),
            headers_only: true,
        }
    }
}

/// Appends `.xx.yyyy...`.
fn push_tokens(subject: &mut String, id: &OperationId) {
    subject.push('.');
    let digits = subject.len();
    id.push_hex(subject);
    subject.insert(digits + 2, '.');
}

fn from_hex(digits: &str, into: &mut [u8]) -> Option<()> {
    if digits.len() != into.len() * 2 || !digits.is_ascii() {
        return None;
    }
    for (at, byte) in into.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[at * 2..][..2], 16).ok()?;
    }
    Some(())
}

/// What a stream has to be like.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) replicas: usize,
    /// None: as much as the server gives.
    pub(crate) max_bytes: Option<u64>,
}

impl Wanted {
    pub(crate) fn config(&self) -> Config {
        let subjects = Subjects::of(&self.name);
        Config {
            name: self.name.clone(),
            description: Some("Records of retrysafe. A purge would forget live claims.".into()),
            subjects: vec![subjects.all()],
            // One record per subject: a write replaces what it was checked against.
            max_messages_per_subject: 1,
            // ST8: a full stream refuses. The default would drop the oldest record, a live claim.
            discard: DiscardPolicy::New,
            retention: RetentionPolicy::Limits,
            max_bytes: self.max_bytes.map_or(-1, |most| i64::try_from(most).unwrap_or(i64::MAX)),
            max_messages: -1,
            max_consumers: -1,
            max_message_size: -1,
            storage: StorageType::File,
            num_replicas: self.replicas,
            // Every record says when it ends. Nothing else may end it: see `complaint`.
            allow_message_ttl: true,
            allow_direct: false,
            deny_delete: true,
            deny_purge: true,
            republish: Some(subjects.republish()),
            ..Config::default()
        }
    }

    /// What is wrong with a stream that exists, in one line; `None` if it can be used.
    pub(crate) fn complaint(&self, is: &Config) -> Option<String> {
        let wants = self.config();
        let subjects = wants.subjects.join(", ");
        let rules: [(bool, String); 12] = [
            (is.subjects == wants.subjects, format!("its subjects must be `{subjects}`")),
            (
                is.max_messages_per_subject == 1,
                "max_msgs_per_subject must be 1, so that a record replaces the one before".into(),
            ),
            (
                is.discard == DiscardPolicy::New && !is.discard_new_per_subject,
                "discard must be `new` (and not per subject), so that a full stream refuses instead \
                 of dropping a live claim"
                    .into(),
            ),
            (
                is.retention == RetentionPolicy::Limits,
                "retention must be `limits`; no consumer decides what is kept".into(),
            ),
            (
                is.storage == StorageType::File,
                "storage must be `file`, so that records survive a restart".into(),
            ),
            (
                is.persist_mode != Some(PersistenceMode::Async),
                "persist_mode must not be `async`, which acknowledges what is not yet written".into(),
            ),
            (
                is.allow_message_ttl,
                "allow_msg_ttl must be on: every record says when it expires".into(),
            ),
            (
                is.max_age.is_zero() && is.subject_delete_marker_ttl.is_none_or(|ttl| ttl.is_zero()),
                "max_age and subject_delete_marker_ttl must be 0: a maximum age removes live claims \
                 and outcomes whatever their own TTL says"
                    .into(),
            ),
            (
                is.num_replicas >= self.replicas,
                format!("it has {} replicas and {} were asked for", is.num_replicas, self.replicas),
            ),
            (
                is.mirror.is_none()
                    && is.sources.as_ref().is_none_or(Vec::is_empty)
                    && is.subject_transform.is_none(),
                "it must be fed by retrysafe alone: no mirror, no sources, no subject transform".into(),
            ),
            (!is.sealed && !is.no_ack, "it must take writes and acknowledge them".into()),
            (
                is.republish == wants.republish,
                format!(
                    "republish must be from `{subjects}` to `{}`, headers only, so that who waits is \
                     told",
                    wants.republish.as_ref().map_or("", |republish| &republish.destination)
                ),
            ),
        ];
        rules.into_iter().find(|(kept, _)| !kept).map(|(_, complaint)| complaint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_keep_the_order_of_ids_and_are_read_back() {
        let subjects = Subjects::of("retrysafe");
        let mut ids: Vec<_> =
            (0..=255_u8).map(|n| OperationId::from_bytes([n.wrapping_mul(37); 32])).collect();
        ids.sort_unstable();
        let names: Vec<_> = ids.iter().map(|id| subjects.record(id)).collect();
        assert!(names.is_sorted());
        for (id, name) in ids.iter().zip(&names) {
            assert_eq!(subjects.id(name), Some(*id));
            assert!(
                name.starts_with(subjects.beginning_with(id.as_bytes()[0]).trim_end_matches('*'))
            );
        }
        for foreign in ["", "retrysafe", "retrysafe.aa", "retrysafe.aa.bb", "other.aa.bb"] {
            assert_eq!(subjects.id(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn what_we_create_is_what_we_accept() {
        let wanted = Wanted { name: "retrysafe".into(), replicas: 3, max_bytes: Some(1 << 30) };
        assert_eq!(wanted.complaint(&wanted.config()), None);
    }
}
