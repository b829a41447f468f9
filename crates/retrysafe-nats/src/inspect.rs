//! What operators see and change.
//!
//! JetStream finds a record by its subject and nothing else, so looking at all of them is work: the
//! names come from `STREAM.INFO`, and then every record is read by itself.

use futures_util::{StreamExt as _, stream};
use retrysafe_core::{
    Counts, Entry, Inspect, Operated, OperationId, Resolution, State, StoreError,
    lifecycle::{Record, Step},
};

use crate::{NatsStore, store::Time};

/// How many records are read at a time.
const AT_ONCE: usize = 16;

/// Up to here the names of all records are asked for at once; beyond, those of each first byte.
const FEW: u64 = 4096;

impl NatsStore {
    /// The subjects to ask for, in order, that cover every id after this one.
    async fn parts(&self, after: Option<&OperationId>) -> Result<Vec<String>, StoreError> {
        let subjects = &self.shared.stream.subjects;
        if self.shared.stream.info().await?.records <= FEW {
            return Ok(vec![subjects.all()]);
        }
        let first = after.map_or(0, |after| after.as_bytes()[0]);
        Ok((first..=u8::MAX).map(|first| subjects.beginning_with(first)).collect())
    }
}

impl Inspect for NatsStore {
    async fn get(&self, id: &OperationId) -> Result<Option<Entry>, StoreError> {
        let entry = |record: Record, age| Step { answer: Some(record.entry(age)), write: None };
        let none = |_| Step { answer: None, write: None };
        self.shared.within(self.shared.act(id, Time::Lately, entry, none)).await
    }

    /// Costs a request for each record, and one or, in a stream of more than a few thousand
    /// records, several for their names.
    async fn page(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut page = Vec::new();
        if limit == 0 {
            return Ok(page);
        }
        for part in self.parts(after).await? {
            let mut ids = self.shared.stream.ids(&part).await?;
            ids.retain(|id| after.is_none_or(|after| id > after));
            let get = |id| async move { self.get(&id).await };
            let mut entries = stream::iter(ids).map(get).buffered(AT_ONCE);
            while let Some(entry) = entries.next().await {
                page.extend(entry?);
                if page.len() >= limit {
                    return Ok(page);
                }
            }
        }
        Ok(page)
    }

    /// Costs as much as a page of all records: every one is read.
    async fn count(&self) -> Result<Counts, StoreError> {
        let mut counts = Counts::default();
        for part in self.parts(None).await? {
            let ids = self.shared.stream.ids(&part).await?;
            let get = |id| async move { self.get(&id).await };
            let mut entries = stream::iter(ids).map(get).buffer_unordered(AT_ONCE);
            while let Some(entry) = entries.next().await {
                let tally = match entry?.map(|entry| entry.state) {
                    Some(State::InFlight { .. }) => &mut counts.in_flight,
                    Some(State::Lapsed) => &mut counts.lapsed,
                    Some(State::Finished { .. }) => &mut counts.finished,
                    Some(State::Released) => &mut counts.released,
                    None => continue,
                };
                *tally += 1;
            }
        }
        Ok(counts)
    }

    async fn forget(&self, id: &OperationId) -> Result<Operated, StoreError> {
        let none = |_| Step { answer: Operated::NotFound, write: None };
        self.shared.within(self.shared.act(id, Time::Now, Record::forget, none)).await
    }

    async fn resolve(
        &self,
        id: &OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> Result<Operated, StoreError> {
        if let Resolution::Happened { payload, .. } = &resolution {
            self.shared.check_size(payload)?;
        }
        let resolve = |record: Record, age| record.resolve(seen, &resolution, age);
        let none = |_| Step { answer: Operated::NotFound, write: None };
        self.shared.within(self.shared.act(id, Time::Now, resolve, none)).await
    }
}
