//! What operators see and change.

use retrysafe_core::{
    Counts, Entry, Inspect, Operated, OperationId, Resolution, StoreError,
    lifecycle::{Record, Step},
};

use super::{
    PostgresStore,
    call::{Call, Statement, statement},
    observed,
    record::{self, NOW, column, interval, unreadable},
    statements::{FINISHED, GIVEN_UP, IN_FLIGHT, LAYOUT, RELEASED},
};

impl PostgresStore {
    async fn find(
        &self,
        call: &mut Call<'_>,
        id: &OperationId,
    ) -> Result<Option<Record>, StoreError> {
        let get = || statement(&self.shared.statements.get).bind(&id.as_bytes()[..]);
        match call.ask(get).await?.first() {
            Some(row) => Ok(Some(record::read(row)?).filter(|record| !record.is_expired(NOW))),
            None => Ok(None),
        }
    }

    /// Changes a record if `judge` would write one, by compare-and-set on what was judged.
    async fn operate(
        &self,
        id: &OperationId,
        judge: impl Fn(Record) -> Step<Operated>,
        change: impl Fn(&Record) -> Statement,
    ) -> Result<Operated, StoreError> {
        let mut call = self.shared.call();
        loop {
            let Some(record) = self.find(&mut call, id).await? else {
                return Ok(Operated::NotFound);
            };
            let judged = judge(record.clone());
            if judged.write.is_none() {
                return Ok(judged.answer);
            }
            if !call.ask(|| change(&record)).await?.is_empty() {
                self.shared.watches.wake(id);
                return Ok(Operated::Applied);
            }
            call.again().await?;
        }
    }
}

impl Inspect for PostgresStore {
    async fn get(&self, id: &OperationId) -> Result<Option<Entry>, StoreError> {
        let record = self.find(&mut self.shared.call(), id).await?;
        Ok(record.map(|record| record.entry(NOW)))
    }

    async fn page(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let after = after.map_or(&[][..], |id| id.as_bytes());
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let page = || statement(&self.shared.statements.page).bind(after).bind(limit);
        let rows = self.shared.long_call().ask(page).await?;
        rows.iter().map(|row| Ok(record::read(row)?.entry(NOW))).collect()
    }

    async fn count(&self) -> Result<Counts, StoreError> {
        let mut counts = Counts::default();
        let rows = self.shared.long_call().ask(|| statement(&self.shared.statements.count)).await?;
        for row in &rows {
            let kind = (column(row, "layout"), column(row, "state"), column(row, "live"));
            let tally = match kind {
                (Some(LAYOUT), Some(IN_FLIGHT), Some(true)) => &mut counts.in_flight,
                (Some(LAYOUT), Some(IN_FLIGHT | GIVEN_UP), _) => &mut counts.lapsed,
                (Some(LAYOUT), Some(FINISHED), _) => &mut counts.finished,
                (Some(LAYOUT), Some(RELEASED), _) => &mut counts.released,
                _ => return Err(unreadable("some records", "layout or state")),
            };
            *tally += column::<i64>(row, "records").unwrap_or_default().unsigned_abs();
        }
        Ok(counts)
    }

    async fn forget(&self, id: &OperationId) -> Result<Operated, StoreError> {
        let free = |record: &Record| observed(&self.shared.statements.free, record);
        self.operate(id, |record| record.forget(NOW), free).await
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
        let change = |record: &Record| match &resolution {
            Resolution::DidNotHappen => observed(&self.shared.statements.free, record),
            Resolution::Happened { payload, retention } => {
                observed(&self.shared.statements.resolve, record)
                    .bind(&payload[..])
                    .bind(interval(*retention))
            }
        };
        self.operate(id, |record| record.resolve(seen, &resolution, NOW), change).await
    }
}
