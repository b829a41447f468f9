//! What a server is asked before it is trusted with records, and the table.

use sqlx::{
    AssertSqlSafe, Executor as _, PgConnection, Postgres, Row as _, Type,
    postgres::{PgRow, types::PgInterval},
};

use super::{
    failure::{self, Place},
    statements::Statements,
};
use crate::{OpenError, OpenErrorKind, table::TableName};

/// `WITH ... AS MATERIALIZED`, by which each statement reads the clock once.
const OLDEST: u32 = 120_000;

/// Of all who create our tables, by the letters `rsaf`: two at once would get in each other's way.
const CREATING: i32 = i32::from_be_bytes(*b"rsaf");

const ASK: &str = "
    SELECT pg_is_in_recovery() AS standby,
        current_setting('transaction_read_only') = 'on' AS read_only,
        current_setting('transaction_isolation') AS isolation,
        current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on' AS flushes,
        current_setting('synchronous_commit') AS commits,
        current_setting('synchronous_standby_names') AS standbys,
        to_regclass($1) IS NOT NULL AS has_table,
        coalesce((
            SELECT bool_and(has_table_privilege(to_regclass($1)::oid, privilege))
            FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
        ), false) AS may_write";

/// The table's DDL, under some name.
pub(crate) fn schema(table: &TableName) -> String {
    let index = format!("\"{}_by_expiry\"", table.bare());
    include_str!("../../schema/postgres.sql")
        .replace("\"retrysafe_record_by_expiry\"", &index)
        .replace("\"retrysafe_record\"", &table.quoted('"'))
}

/// Sees to it that the server keeps what the store promises, and creates the table if that is
/// wanted and it is not there.
pub(crate) async fn prepare(
    connection: &mut PgConnection,
    place: &Place,
    table: &TableName,
    statements: &Statements,
    migrate: bool,
) -> Result<(), OpenError> {
    let failed = |error| failure::open_with(place, &table.quoted('"'), error);
    if let Some(version) = connection.server_version_num() {
        refuse_old(place, version)?;
    }
    let ask = sqlx::query(ASK).persistent(false).bind(table.quoted('"'));
    let answer = ask.fetch_one(&mut *connection).await.map_err(failed)?;
    let server = Server::read(&answer).map_err(failed)?;
    server.refuse(place)?;

    if server.has_table {
        if !server.may_write {
            return Err(failure::no_right(place, &table.quoted('"')));
        }
    } else if migrate {
        // One transaction, as every simple query is.
        let create = format!("SELECT pg_advisory_xact_lock({CREATING}); {}", schema(table));
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *connection).await.map_err(failed)?;
    } else {
        let problem = failure::missing(&table.quoted('"'));
        return Err(OpenError::new(place.as_str(), OpenErrorKind::Missing, problem));
    }

    // A table of another shape is known now, and not by the first request.
    let bytes = <Vec<u8> as Type<Postgres>>::type_info();
    let time = <PgInterval as Type<Postgres>>::type_info();
    let begin = statements.begin.clone();
    connection
        .prepare_with(begin, &[bytes.clone(), bytes.clone(), bytes, time.clone(), time])
        .await
        .map_err(failed)?;
    server.warn(place);
    Ok(())
}

fn refuse_old(place: &Place, version: u32) -> Result<(), OpenError> {
    if version >= OLDEST {
        return Ok(());
    }
    let problem = format!(
        "it is version {}, and the store needs {} or later; upgrade it",
        version / 10_000,
        OLDEST / 10_000
    );
    Err(OpenError::new(place.as_str(), OpenErrorKind::Unsuitable, problem))
}

/// What a server said of itself.
#[derive(Clone, Debug)]
struct Server {
    standby: bool,
    read_only: bool,
    isolation: String,
    flushes: bool,
    commits: String,
    standbys: String,
    has_table: bool,
    may_write: bool,
}

impl Server {
    fn read(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            standby: row.try_get("standby")?,
            read_only: row.try_get("read_only")?,
            isolation: row.try_get("isolation")?,
            flushes: row.try_get("flushes")?,
            commits: row.try_get("commits")?,
            standbys: row.try_get("standbys")?,
            has_table: row.try_get("has_table")?,
            may_write: row.try_get("may_write")?,
        })
    }

    fn refuse(&self, place: &Place) -> Result<(), OpenError> {
        if self.standby {
            return Err(failure::standby(place));
        }
        if self.read_only {
            let problem = "transactions on it are read-only for this user; see \
                           `default_transaction_read_only`";
            return Err(OpenError::new(place.as_str(), OpenErrorKind::Unsuitable, problem));
        }
        Ok(())
    }

    /// ST9: what of the table in the crate's documentation does not hold on this server.
    fn weaknesses(&self) -> Vec<&'static str> {
        let mut found = Vec::new();
        if !self.flushes {
            found.push(
                "fsync or full_page_writes is off: a loss of power may take every record along",
            );
        }
        match self.commits.as_str() {
            "off" => found.push(
                "synchronous_commit is off: a crash may forget the last claims, and their \
                 operations run again",
            ),
            "local" if !self.standbys.is_empty() => found.push(
                "synchronous_commit is local: a failover may forget the last claims, and their \
                 operations run again",
            ),
            _ => {}
        }
        if self.isolation != "read committed" {
            found.push(
                "the pool's transactions are not read committed: claims that meet are tried again \
                 instead of waiting",
            );
        }
        found
    }

    fn warn(&self, place: &Place) {
        for weakness in self.weaknesses() {
            tracing::warn!(server = %place, "{weakness}");
        }
        if self.standbys.is_empty() {
            tracing::info!(
                server = %place,
                "no synchronous standby: records survive a crash of this server, not its loss"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Server {
        Server {
            standby: false,
            read_only: false,
            isolation: "read committed".into(),
            flushes: true,
            commits: "on".into(),
            standbys: "standby".into(),
            has_table: true,
            may_write: true,
        }
    }

    #[test]
    fn an_old_server_is_refused() {
        let place = Place::unknown();
        let error = refuse_old(&place, 110_022).unwrap_err();
        assert_eq!(error.kind(), OpenErrorKind::Unsuitable);
        assert!(error.to_string().contains("version 11, and the store needs 12"), "{error}");
        assert!(refuse_old(&place, 120_000).is_ok() && refuse_old(&place, 150_013).is_ok());
    }

    #[test]
    fn st9_what_is_weaker_than_documented_is_found() {
        let found = |server: Server| server.weaknesses().len();
        assert_eq!(found(sound()), 0);
        assert_eq!(found(Server { flushes: false, ..sound() }), 1);
        assert_eq!(found(Server { commits: "off".into(), ..sound() }), 1);
        assert_eq!(found(Server { commits: "local".into(), ..sound() }), 1);
        let alone = Server { commits: "local".into(), standbys: String::new(), ..sound() };
        assert_eq!(found(alone), 0);
        assert_eq!(found(Server { isolation: "serializable".into(), ..sound() }), 1);
    }

    #[test]
    fn the_schema_is_printed_under_any_name() {
        let printed = schema(&TableName::parse("app.once").unwrap());
        assert!(printed.contains(r#"CREATE TABLE IF NOT EXISTS "app"."once" ("#), "{printed}");
        assert!(printed.contains(r#"INDEX IF NOT EXISTS "once_by_expiry" ON "app"."once""#));
        assert!(!printed.contains("retrysafe_record"));
    }
}
