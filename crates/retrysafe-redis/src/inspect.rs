//! What operators see and change.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use redis::Value;
use retrysafe_core::{Counts, Entry, Inspect, Operated, OperationId, Resolution, StoreError};

use crate::{
    RedisStore,
    error::Failure,
    key,
    node::{How, Node, Request},
    record::{Head, Milliseconds, Record, Seen, Standing},
    script,
    store::{Shared, seen, unexpected},
};

/// How many keys the server looks at for one step of a walk.
const STEP: usize = 1000;

impl Shared {
    /// Walks over the records of one server, a batch of ids at a time. Redis says each at least
    /// once, in no order.
    async fn walk(&self, node: &Node, walk: &mut Walk) -> Result<Vec<OperationId>, StoreError> {
        let mut command = redis::cmd("SCAN");
        command.arg(&walk.cursor).arg("MATCH").arg(key::pattern(&self.settings.prefix));
        command.arg("COUNT").arg(STEP);
        let reply = node.send(Request::Command(&command), How::default()).await?;
        let Value::Array(reply) = reply.value else { return Err(unexpected(&reply.value)) };
        let [Value::BulkString(cursor), Value::Array(keys)] = &reply[..] else {
            return Err(unexpected(&Value::Array(reply)));
        };
        walk.cursor.clone_from(cursor);
        walk.ended = cursor == b"0";
        let ids = keys.iter().filter_map(|name| match name {
            Value::BulkString(name) => key::operation(&self.settings.prefix, name),
            _ => None,
        });
        Ok(ids.collect())
    }

    async fn entry(&self, id: &OperationId) -> Result<Option<Entry>, StoreError> {
        match self.read(&self.key(id)).await? {
            Some(seen) => Record::read(id, &seen.value)?.entry(id, seen.expiry).map(Some),
            None => Ok(None),
        }
    }

    /// Looks at several records of one server at once.
    async fn look(
        &self,
        node: &Node,
        ids: &[OperationId],
    ) -> Result<Vec<Option<Seen>>, StoreError> {
        let keys: Vec<_> = ids.iter().map(|id| self.key(id)).collect();
        let requests: Vec<_> = keys
            .iter()
            .map(|key| Request::Script { script: &script::LOOK, key, arguments: &[] })
            .collect();
        let mut looked = Vec::with_capacity(ids.len());
        for (value, key) in node.send_all(&requests).await?.into_iter().zip(&keys) {
            looked.push(match value {
                // On its way to another node, or forgotten by this one.
                Value::ServerError(_) => {
                    seen(self.run(&script::LOOK, key, &[], How::default()).await?.value)?
                }
                value => seen(value)?,
            });
        }
        Ok(looked)
    }

    /// The `limit` smallest ids after `after`.
    async fn smallest(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<BTreeSet<OperationId>, StoreError> {
        let mut smallest = BTreeSet::new();
        for node in self.primaries().await? {
            let mut walk = Walk::default();
            while !walk.ended {
                for id in self.walk(&node, &mut walk).await? {
                    if after.is_none_or(|after| id > *after) {
                        smallest.insert(id);
                        if smallest.len() > limit {
                            smallest.pop_last();
                        }
                    }
                }
            }
        }
        Ok(smallest)
    }

    async fn primaries(&self) -> Result<Vec<Arc<Node>>, StoreError> {
        Ok(self.servers.primaries().await.map_err(Failure::NotSent)?)
    }

    fn operated(&self, id: &OperationId, value: Value) -> Result<Operated, StoreError> {
        match value {
            Value::Int(1) => {
                self.watches.wake(id);
                Ok(Operated::Applied)
            }
            Value::Int(0) => Ok(Operated::NotFound),
            Value::Int(-1) => Ok(Operated::Refused),
            // ST10: a script gives back what it can't judge.
            value => match seen(value)? {
                Some(seen) => {
                    Record::read(id, &seen.value)?;
                    Err(unexpected(&Value::Nil))
                }
                None => Ok(Operated::NotFound),
            },
        }
    }
}

struct Walk {
    cursor: Vec<u8>,
    ended: bool,
}

impl Default for Walk {
    fn default() -> Self {
        Self { cursor: b"0".to_vec(), ended: false }
    }
}

/// [`get`](Inspect::get), [`forget`](Inspect::forget) and [`resolve`](Inspect::resolve) are one request
/// each. [`page`](Inspect::page) and [`count`](Inspect::count) walk over *every key* of the database,
/// on every primary, because Redis keeps no order, in steps that let claims go between; a page walks as
/// far as all pages together would in a store with an index. `count` also keeps the ids that it has seen: 32
/// bytes each.
impl Inspect for RedisStore {
    async fn get(&self, id: &OperationId) -> Result<Option<Entry>, StoreError> {
        self.shared.entry(id).await
    }

    async fn page(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut after = after.copied();
        let mut page = Vec::new();
        if limit == 0 {
            return Ok(page);
        }
        // All of those that were found may have expired since: an empty page would be the last.
        while page.is_empty() {
            let ids = self.shared.smallest(after.as_ref(), limit).await?;
            let Some(last) = ids.last() else { break };
            after = Some(*last);
            for id in &ids {
                page.extend(self.shared.entry(id).await?);
            }
        }
        Ok(page)
    }

    async fn count(&self) -> Result<Counts, StoreError> {
        let mut counts = Counts::default();
        let mut counted = HashSet::new();
        for node in self.shared.primaries().await? {
            let mut walk = Walk::default();
            while !walk.ended {
                let mut ids = self.shared.walk(&node, &mut walk).await?;
                ids.retain(|id| counted.insert(*id));
                if ids.is_empty() {
                    continue;
                }
                let looked = self.shared.look(&node, &ids).await?;
                for (id, looked) in ids.iter().zip(looked) {
                    let Some(looked) = looked else { continue };
                    let tally = match Head::standing(id, &looked.value, looked.expiry)? {
                        Standing::InFlight { .. } => &mut counts.in_flight,
                        Standing::Lapsed => &mut counts.lapsed,
                        Standing::Finished => &mut counts.finished,
                        Standing::Released => &mut counts.released,
                    };
                    *tally += 1;
                }
            }
        }
        Ok(counts)
    }

    async fn forget(&self, id: &OperationId) -> Result<Operated, StoreError> {
        let key = self.shared.key(id);
        let reply = self.shared.run(&script::FORGET, &key, &[], How::default()).await?;
        self.shared.operated(id, reply.value)
    }

    async fn resolve(
        &self,
        id: &OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> Result<Operated, StoreError> {
        let store = &*self.shared;
        let key = store.key(id);
        let seen = seen.to_string();
        let reply = match &resolution {
            Resolution::DidNotHappen => {
                store.run(&script::RESOLVE, &key, &[seen.as_bytes()], How::default()).await?
            }
            Resolution::Happened { payload, retention } => {
                store.check_size(payload)?;
                let retention = Milliseconds::rounded_up(*retention).0.to_string();
                let arguments = [seen.as_bytes(), payload, retention.as_bytes()];
                store.run(&script::RESOLVE, &key, &arguments, How::default()).await?
            }
        };
        store.operated(id, reply.value)
    }
}
