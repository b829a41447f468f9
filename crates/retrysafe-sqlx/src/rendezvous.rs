//! Several primaries: each operation has its place on one of them.

mod hosts;
mod moving;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use retrysafe_core::{
    About, Begin, Claim, ConfigError, Counts, Entry, Fingerprint, Held, Inspect, Lease, Operated,
    OperationId, Resolution, Store, StoreError, Swept,
};

pub use self::hosts::{Host, Role, hosts};
use self::moving::Moving;

/// Several stores as one: every operation is kept by one of them, which its id alone decides.
///
/// For those whose keys outgrow one server. Operations need no transaction in common, so the
/// primaries know nothing of each other. Each should have its own standby: **a primary that is lost
/// is not replaced by another one.** Its keys are answered
/// [`Unreachable`](retrysafe_core::StoreErrorKind::Unreachable) (503) until it is back, and the
/// others' go on. Anything else would run operations again whose records are on the lost one.
///
/// Which primary has an operation is decided by rendezvous hashing of the id with the primaries'
/// *names*. Names are for ever; addresses may change. Every process has to know the same names.
///
/// ```
/// # use retrysafe_core::MemoryStore;
/// use retrysafe_core::Store;
/// use retrysafe_sqlx::Primaries;
///
/// # let (east, west) = (MemoryStore::new(), MemoryStore::new());
/// let store = Primaries::builder().primary("east", east).primary("west", west).build()?;
/// assert_eq!(store.about().engine, "memory");
/// # Ok::<(), retrysafe_core::ConfigError>(())
/// ```
///
/// # To add one, or to take one away
///
/// One new primary among *n* takes over a share of 1/*n* of the keys, one that goes leaves its share
/// to the others; no other key moves. A key that moves has records in its old place for up to a
/// retention, and a handler can ask for a longer one than the layer's (E4). So the list is changed
/// in two steps:
///
/// 1. Every process is given the list with the new one as [`joining`](PrimariesBuilder::joining), or
///    with the old one as [`leaving`](PrimariesBuilder::leaving). Keys that move are then claimed,
///    renewed and completed in the old place *and* in the new, which costs each verb twice.
/// 2. When the last process has had that list for **the longest retention** in use, each is given
///    the final list.
///
/// In either step, processes with the list of before and with the new one may run side by side, as
/// they do while they are restarted one by one. Processes of before the first step and of after the
/// second must not. One change at a time: begin the next when the one before is over.
///
/// While a key is in two places, both have to be reachable. The decision with the reasons is number
/// 14 in the repository.
pub struct Primaries<S> {
    members: Arc<[Member<S>]>,
}

struct Member<S> {
    name: String,
    seed: u64,
    role: Role,
    store: S,
}

/// Lists the [`Primaries`].
#[must_use]
pub struct PrimariesBuilder<S> {
    members: Vec<Member<S>>,
}

impl<S> Primaries<S> {
    /// Starts an empty list.
    pub fn builder() -> PrimariesBuilder<S> {
        PrimariesBuilder { members: Vec::new() }
    }

    /// Where an operation is kept.
    fn place(&self, id: &OperationId) -> Place<'_, S> {
        let from = self.highest(id, Role::Joining);
        let to = self.highest(id, Role::Leaving);
        match std::ptr::eq(from, to) {
            true => Place::One(to),
            false => Place::Two(Moving { from, to }),
        }
    }

    /// The highest of those that are not in one role.
    fn highest(&self, id: &OperationId, without: Role) -> &Member<S> {
        let listed = self.members.iter().filter(|member| member.role != without);
        let highest = listed
            .max_by(|one, other| (one.weight(id), &other.name).cmp(&(other.weight(id), &one.name)));
        // The builder made sure that there is one.
        highest.unwrap_or(&self.members[0])
    }

    /// The names of the primaries that keep an operation: one, or the old and the new.
    pub fn names_of(&self, id: &OperationId) -> Vec<&str> {
        match self.place(id) {
            Place::One(member) => vec![&member.name],
            Place::Two(Moving { from, to }) => vec![&from.name, &to.name],
        }
    }
}

enum Place<'a, S> {
    One(&'a Member<S>),
    Two(Moving<'a, S>),
}

impl<S> PrimariesBuilder<S> {
    /// One that is here to stay.
    pub fn primary(self, name: impl Into<String>, store: S) -> Self {
        self.member(name, Role::Staying, store)
    }

    /// One that is being added.
    pub fn joining(self, name: impl Into<String>, store: S) -> Self {
        self.member(name, Role::Joining, store)
    }

    /// One that is being taken away.
    pub fn leaving(self, name: impl Into<String>, store: S) -> Self {
        self.member(name, Role::Leaving, store)
    }

    /// One in a role that was read from somewhere: see [`hosts`].
    pub fn member(mut self, name: impl Into<String>, role: Role, store: S) -> Self {
        let name = name.into();
        self.members.push(Member { seed: seed(&name), name, role, store });
        self
    }

    /// Makes one store of them.
    ///
    /// # Errors
    ///
    /// If a name is empty or there twice, or if no primary would be left before or after the change.
    pub fn build(self) -> Result<Primaries<S>, ConfigError> {
        let wrong = |problem: String| Err(ConfigError::new("primaries", problem));
        for (index, member) in self.members.iter().enumerate() {
            if member.name.is_empty() {
                return wrong("a primary has an empty name".to_owned());
            }
            if self.members[..index].iter().any(|other| other.name == member.name) {
                return wrong(format!("two primaries are called {:?}", member.name));
            }
        }
        for without in [Role::Joining, Role::Leaving] {
            if self.members.iter().all(|member| member.role == without) {
                return wrong("at least one primary has to be there before and after".to_owned());
            }
        }
        Ok(Primaries { members: self.members.into() })
    }
}

/// FNV-1a of the name. Never to be changed: it decides where every record is.
fn seed(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl<S> Member<S> {
    /// The last step of splitmix64 over name and id; the id is a cryptographic digest already.
    /// Never to be changed.
    fn weight(&self, id: &OperationId) -> u64 {
        let word = id.as_bytes().first_chunk().map_or(0, |word| u64::from_be_bytes(*word));
        let mut mixed = self.seed ^ word;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The same error, saying which primary it comes from.
    fn named(&self, error: StoreError) -> StoreError {
        let context = format!("primary {:?}: {error}", self.name);
        StoreError::with_source(error.kind(), context, error)
    }
}

impl<S> Clone for Primaries<S> {
    fn clone(&self) -> Self {
        Self { members: Arc::clone(&self.members) }
    }
}

impl<S> fmt::Debug for Primaries<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.members.iter().map(|member| (&member.name, member.role)))
            .finish()
    }
}

impl<S> fmt::Debug for PrimariesBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.members.iter().map(|member| (&member.name, member.role)))
            .finish()
    }
}

/// While a key moves, what its new place knows has to be seen without claiming it: hence `Inspect`.
impl<S: Store + Inspect> Store for Primaries<S> {
    fn about(&self) -> About {
        let about = self.members.iter().map(|member| member.store.about());
        let smallest = about.min_by_key(|about| about.max_payload);
        smallest.unwrap_or_else(|| self.members[0].store.about())
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        match self.place(&claim.id) {
            Place::One(member) => member.begin(claim).await,
            Place::Two(moving) => moving.begin(claim).await,
        }
    }

    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        match self.place(&lease.id) {
            Place::One(member) => member.renew(lease, lease_for).await,
            Place::Two(moving) => moving.renew(lease, lease_for).await,
        }
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        match self.place(&lease.id) {
            Place::One(member) => member.complete(lease, fingerprint, payload, retention).await,
            Place::Two(moving) => moving.complete(lease, fingerprint, payload, retention).await,
        }
    }

    async fn release(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
    ) -> Result<Held, StoreError> {
        match self.place(&lease.id) {
            Place::One(member) => member.release(lease, keep_counters_for).await,
            Place::Two(moving) => moving.release(lease, keep_counters_for).await,
        }
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        match self.place(id) {
            Place::One(member) => member.changed(id, seen, within).await,
            Place::Two(moving) => moving.changed(id, seen, within).await,
        }
    }

    /// Goes on with the others when one can't be reached, and then answers with its error.
    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        let mut all = Swept::default();
        let mut failed = None;
        for member in &*self.members {
            match member.store.sweep(limit - all.removed).await {
                Ok(swept) => {
                    all.removed += swept.removed;
                    all.more |= swept.more;
                }
                Err(error) => failed = failed.or(Some(member.named(error))),
            }
        }
        failed.map_or(Ok(all), Err)
    }
}

/// Operators see and change an operation where it is kept. [`count`](Inspect::count) counts rows:
/// a key that moves may have two, and one that has moved may have left one behind.
impl<S: Store + Inspect> Inspect for Primaries<S> {
    async fn get(&self, id: &OperationId) -> Result<Option<Entry>, StoreError> {
        match self.place(id) {
            Place::One(member) => member.get(id).await,
            Place::Two(moving) => moving.get(id).await,
        }
    }

    async fn page(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut ids = Vec::new();
        let mut page = Vec::new();
        for member in &*self.members {
            let entries = member.store.page(after, limit).await;
            for entry in entries.map_err(|error| member.named(error))? {
                match self.place(&entry.id) {
                    Place::One(home) if std::ptr::eq(home, member) => page.push(entry),
                    // What has moved away long ago.
                    Place::One(_) => {}
                    Place::Two(_) => ids.push(entry.id),
                }
            }
        }
        // Of what is in two places, what is true is said by both together.
        ids.sort_unstable();
        ids.dedup();
        for id in ids.into_iter().take(limit) {
            page.extend(self.get(&id).await?);
        }
        page.sort_unstable_by_key(|entry| entry.id);
        page.truncate(limit);
        Ok(page)
    }

    async fn count(&self) -> Result<Counts, StoreError> {
        let mut all = Counts::default();
        for member in &*self.members {
            let counts = member.store.count().await.map_err(|error| member.named(error))?;
            all.in_flight += counts.in_flight;
            all.lapsed += counts.lapsed;
            all.finished += counts.finished;
            all.released += counts.released;
        }
        Ok(all)
    }

    async fn answers(&self) -> Result<(), StoreError> {
        let asked = self.members.iter().map(|member| async move {
            member.store.answers().await.map_err(|error| member.named(error))
        });
        let (answered, failed): (Vec<_>, Vec<_>) =
            join_all(asked).await.into_iter().partition(Result::is_ok);
        for error in failed.iter().filter_map(|it| it.as_ref().err()) {
            tracing::warn!(%error, "a primary can't be used; its keys are refused until it can");
        }
        answered.into_iter().chain(failed).next().unwrap_or(Ok(()))
    }

    async fn forget(&self, id: &OperationId) -> Result<Operated, StoreError> {
        match self.place(id) {
            Place::One(member) => member.forget(id).await,
            Place::Two(moving) => moving.forget(id).await,
        }
    }

    async fn resolve(
        &self,
        id: &OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> Result<Operated, StoreError> {
        match self.place(id) {
            Place::One(member) => member.resolve(id, seen, resolution).await,
            Place::Two(moving) => moving.resolve(id, seen, resolution).await,
        }
    }
}

/// The verbs of one member, whose errors say which it is.
impl<S: Store + Inspect> Member<S> {
    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        self.store.begin(claim).await.map_err(|error| self.named(error))
    }

    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        self.store.renew(lease, lease_for).await.map_err(|error| self.named(error))
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        let complete = self.store.complete(lease, fingerprint, payload, retention);
        complete.await.map_err(|error| self.named(error))
    }

    async fn release(&self, lease: &Lease, keep_for: Duration) -> Result<Held, StoreError> {
        self.store.release(lease, keep_for).await.map_err(|error| self.named(error))
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        self.store.changed(id, seen, within).await.map_err(|error| self.named(error))
    }

    async fn get(&self, id: &OperationId) -> Result<Option<Entry>, StoreError> {
        self.store.get(id).await.map_err(|error| self.named(error))
    }

    async fn forget(&self, id: &OperationId) -> Result<Operated, StoreError> {
        self.store.forget(id).await.map_err(|error| self.named(error))
    }

    async fn resolve(
        &self,
        id: &OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> Result<Operated, StoreError> {
        self.store.resolve(id, seen, resolution).await.map_err(|error| self.named(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> impl Iterator<Item = OperationId> {
        (0..10_000_u64).map(|number| {
            let mut id = [0; 32];
            // As evenly spread as digests are.
            let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            id[..8].copy_from_slice(&(spread ^ (spread >> 29)).to_be_bytes());
            OperationId::from_bytes(id)
        })
    }

    fn list(names: &[&str]) -> Primaries<()> {
        let builder = Primaries::builder();
        names.iter().fold(builder, |list, name| list.primary(*name, ())).build().unwrap()
    }

    #[test]
    fn where_a_record_is_never_changes() {
        let list = list(&["a", "b", "c", "db-1.internal:5432"]);
        let at = |byte| list.names_of(&OperationId::from_bytes([byte; 32])).concat();
        let found: Vec<_> = [0, 1, 2, 3, 4, 5, 127, 255].map(at).into();
        // Worked out by another program.
        let other = "db-1.internal:5432";
        assert_eq!(found, [other, "b", "c", "c", "b", "b", "b", other]);
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let (one, other) = (list(&["a", "b", "c"]), list(&["c", "a", "b"]));
        assert!(ids().all(|id| one.names_of(&id) == other.names_of(&id)));
    }

    #[test]
    fn every_primary_has_its_share() {
        let list = list(&["a", "b", "c", "d", "e"]);
        for name in ["a", "b", "c", "d", "e"] {
            let share = ids().filter(|id| list.names_of(id) == [name]).count();
            assert!((1_800..2_200).contains(&share), "{name}: {share} of 10000");
        }
    }

    #[test]
    fn only_keys_of_the_one_that_joins_or_leaves_move() {
        let three = list(&["a", "b", "c"]);
        let four = list(&["a", "b", "c", "d"]);
        let joining = Primaries::builder()
            .primary("a", ())
            .primary("b", ())
            .primary("c", ())
            .joining("d", ())
            .build()
            .unwrap();
        let leaving = Primaries::builder()
            .primary("a", ())
            .primary("b", ())
            .primary("c", ())
            .leaving("d", ())
            .build()
            .unwrap();
        let mut moved = 0;
        for id in ids() {
            let (before, after) = (three.names_of(&id)[0], four.names_of(&id)[0]);
            if before == after {
                assert_eq!(joining.names_of(&id), [before]);
                assert_eq!(leaving.names_of(&id), [before]);
            } else {
                assert_eq!(joining.names_of(&id), [before, "d"]);
                assert_eq!(leaving.names_of(&id), ["d", before]);
                moved += 1;
            }
        }
        assert!((2_300..2_700).contains(&moved), "{moved} of 10000");
    }

    #[test]
    fn a_list_is_checked() {
        let twice = Primaries::builder().primary("a", ()).primary("a", ()).build();
        assert!(twice.unwrap_err().to_string().contains("two primaries are called \"a\""));
        assert!(Primaries::<()>::builder().build().is_err());
        assert!(Primaries::builder().joining("a", ()).build().is_err());
        assert!(Primaries::builder().primary("", ()).build().is_err());
        assert!(Primaries::builder().joining("a", ()).leaving("b", ()).build().is_ok());
    }
}
