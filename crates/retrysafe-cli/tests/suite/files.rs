//! The store's file: what can't be used is said before anything listens and stays as it is; what
//! goes wrong while the proxy runs never runs anything twice.

use std::{fs, net::SocketAddr, path::Path, thread};

use crate::support::{OK, Running, Service, ends, exchange, header, post, retrysafe, status};
use rusqlite::Connection as Database;

fn url(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}

fn send(address: SocketAddr, key: &str) -> String {
    exchange(address, &post("/orders", &format!("Idempotency-Key: {key}\r\n"), "{}"))
}

/// One line that names the file and says what is wrong with it, and exit code 1.
#[track_caller]
fn is_refused(path: &Path, problem: &str) {
    let (code, error) = ends(retrysafe().args([
        "proxy",
        "--upstream",
        "http://127.0.0.1:1",
        "--listen",
        "127.0.0.1:0",
        "--store",
        &url(path),
    ]));
    assert_eq!(code, 1, "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with("error: ") && error.contains(problem), "{error}");
    assert!(error.contains(&path.display().to_string()), "{error}");
}

#[track_caller]
fn is_refused_untouched(path: &Path, problem: &str) {
    let before = fs::read(path).unwrap();
    is_refused(path, problem);
    assert_eq!(fs::read(path).unwrap(), before);
}

/// A store with the record of one finished operation, `k-1`.
fn a_store(path: &Path) {
    let service = Service::listen().always(OK);
    let proxy = Running::proxy(service, &["--store", &url(path)]);
    assert_eq!(status(&send(proxy.address, "k-1")), 200);
    proxy.signal("TERM");
    assert_eq!(proxy.ended().0.code(), Some(0));
    // Closed well: all that was written is in the file itself.
    assert!(!path.with_extension("db-wal").exists());
}

#[test]
fn a_path_that_can_not_be_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    is_refused(folder.path(), "is a directory");
    is_refused(&folder.path().join("no/such/folder.db"), "does not exist");
}

#[test]
fn a_file_of_somebody_else_is_refused_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.db");
    fs::write(&text, "no database at all ".repeat(100)).unwrap();
    is_refused_untouched(&text, "not an SQLite database");
    let foreign = folder.path().join("foreign.db");
    let database = Database::open(&foreign).unwrap();
    database.execute_batch("CREATE TABLE customer (name TEXT)").unwrap();
    drop(database);
    is_refused_untouched(&foreign, "another program");
}

#[test]
fn a_damaged_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.db");
    a_store(&path);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    is_refused_untouched(&path, "damaged");
}

#[test]
fn st10_a_file_of_a_newer_release_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.db");
    a_store(&path);
    let database = Database::open(&path).unwrap();
    database.pragma_update(None, "user_version", 9).unwrap();
    drop(database);
    is_refused_untouched(&path, "newer");
}

/// A record that was changed under the proxy answers 503, and nothing runs or is written.
#[track_caller]
fn is_left_alone(change: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.db");
    a_store(&path);
    let database = Database::open(&path).unwrap();
    assert_eq!(database.execute(change, []).unwrap(), 1);
    let record = || {
        let read = "SELECT quote(payload) || state || fence || expires_at FROM record";
        database.query_row(read, [], |row| row.get::<_, String>(0)).unwrap()
    };
    let before = record();
    let service = Service::listen();
    let proxy = Running::proxy(service.address, &["--store", &url(&path)]);
    let answer = send(proxy.address, "k-1");
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(answer.contains("\"code\":\"store_unavailable\""), "{answer}");
    assert!(!service.was_connected_to());
    assert_eq!(record(), before);
}

#[test]
fn undecodable_deleted() {
    is_left_alone("UPDATE record SET payload = CAST(x'FF' || substr(payload, 2) AS BLOB)");
    is_left_alone("UPDATE record SET state = 7");
}

#[test]
#[cfg(unix)]
fn st9_a_file_that_is_deleted_while_it_is_open_is_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.db");
    let service = Service::listen();
    let proxy = Running::proxy(service.address, &["--store", &url(&path)]);
    let address = proxy.address;
    let first = thread::spawn(move || send(address, "k-1"));
    let mut connection = service.accept();
    connection.request().unwrap();
    let aside = folder.path().join("aside.db");
    fs::rename(&path, &aside).unwrap();
    // R7: what has been done is answered, and said not to be recorded.
    connection.send(OK);
    let first = first.join().unwrap();
    assert_eq!(status(&first), 200);
    assert_eq!(header(&first, "idempotency-status").unwrap(), "not-recorded");
    // Who would look for this in the file that is made next?
    let answer = send(address, "k-2");
    assert!(answer.contains("\"code\":\"store_unavailable\""), "{answer}");
    assert!(!service.was_connected_to());
    // Put back, it is what it was, and the outcome is still written.
    fs::rename(&aside, &path).unwrap();
    let retry = loop {
        let retry = send(address, "k-1");
        if status(&retry) == 200 {
            break retry;
        }
        assert!(retry.contains("\"code\":\"in_progress\""), "{retry}");
    };
    assert_eq!(header(&retry, "idempotent-replayed").unwrap(), "true");
    assert!(!service.was_connected_to());
}
