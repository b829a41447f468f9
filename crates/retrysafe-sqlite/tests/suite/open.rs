//! What can be wrong with a path.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use retrysafe_core::{Inspect as _, Store as _, StoreError, StoreErrorKind};
use retrysafe_sqlite::{OpenError, OpenErrorKind, SqliteStore};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::{acquire, claim, file, operation};

/// Opens a file that can't be opened; checks that the error is a line that names it.
fn refused(path: &Path) -> OpenError {
    let error = SqliteStore::open(path).unwrap_err();
    let line = error.to_string();
    assert!(line.contains(&format!("{path:?}")) && !line.contains('\n'), "{line}");
    assert_eq!(error.path(), path);
    error
}

/// The same for a file that exists and has to stay as it is.
fn refused_untouched(path: &Path) -> OpenError {
    // SQLite may leave an empty log beside a file that it has looked at.
    let contents = |path: &Path| fs::read(path).unwrap_or_default();
    let before = (contents(path), contents(&file::log_of(path)));
    let error = refused(path);
    assert!((contents(path), contents(&file::log_of(path))) == before, "the file was altered");
    error
}

fn directory() -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("retrysafe.db");
    (directory, path)
}

async fn a_store_with_a_record(path: &Path) {
    let store = SqliteStore::open(path).unwrap();
    let _ = acquire(&store, &claim(operation())).await;
}

#[test]
fn a_missing_directory_is_named() {
    let (_directory, path) = directory();
    let error = refused(&path.join("retrysafe.db"));
    assert_eq!(error.kind(), OpenErrorKind::Path);
    fs::write(&path, "a file, not a directory").unwrap();
    assert_eq!(refused(&path.join("retrysafe.db")).kind(), OpenErrorKind::Path);
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused() {
    let directory = TempDir::new().unwrap();
    assert_eq!(refused(directory.path()).kind(), OpenErrorKind::Path);
    assert_eq!(refused(Path::new("/dev/null")).kind(), OpenErrorKind::Path);
    for memory in ["", ":memory:"] {
        assert_eq!(refused(Path::new(memory)).kind(), OpenErrorKind::Path);
    }
}

#[test]
fn a_path_is_not_a_uri() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("file:a?mode=memory");
    drop(SqliteStore::open(&path).unwrap());
    assert!(path.exists());
}

#[cfg(target_os = "linux")]
#[test]
fn an_unwritable_directory_is_named() {
    // Nobody, root included, may create files here.
    let error = refused(Path::new("/proc/self/fdinfo/retrysafe.db"));
    assert!(matches!(error.kind(), OpenErrorKind::Denied | OpenErrorKind::Path), "{error}");
}

#[test]
fn a_text_file_is_foreign() {
    let (_directory, path) = directory();
    fs::write(&path, "orders: 17\n".repeat(1_000)).unwrap();
    let error = refused_untouched(&path);
    assert_eq!(error.kind(), OpenErrorKind::Foreign);
    assert_eq!(StoreError::from(error).kind(), StoreErrorKind::Misconfigured);
}

#[test]
fn another_programs_database_is_foreign() {
    for journal in ["DELETE", "WAL"] {
        let (_directory, path) = directory();
        let other = Connection::open(&path).unwrap();
        other.pragma_update(None, "journal_mode", journal).unwrap();
        other.execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY)").unwrap();
        // As a crash would leave it: what was committed last is in the log alone.
        let (_directory, crashed) = directory();
        fs::copy(&path, &crashed).unwrap();
        if journal == "WAL" {
            fs::copy(file::log_of(&path), file::log_of(&crashed)).unwrap();
        }
        drop(other);
        assert_eq!(refused_untouched(&path).kind(), OpenErrorKind::Foreign);
        assert_eq!(refused_untouched(&crashed).kind(), OpenErrorKind::Foreign);
    }
}

#[test]
fn another_programs_empty_database_is_foreign() {
    let (_directory, path) = directory();
    let other = Connection::open(&path).unwrap();
    other.pragma_update(None, "application_id", 7).unwrap();
    drop(other);
    assert_eq!(refused_untouched(&path).kind(), OpenErrorKind::Foreign);
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let (_directory, path) = directory();
    a_store_with_a_record(&path).await;
    let other = Connection::open(&path).unwrap();
    other.pragma_update(None, "user_version", 2).unwrap();
    drop(other);
    let error = refused_untouched(&path);
    assert_eq!(error.kind(), OpenErrorKind::Newer);
    assert_eq!(StoreError::from(error).kind(), StoreErrorKind::Unreadable);
}

#[tokio::test]
async fn a_schema_that_gets_newer_under_us_is_refused() {
    let (_directory, path) = directory();
    let store = SqliteStore::open(&path).unwrap();
    let owned = claim(operation());
    let lease = acquire(&store, &owned).await;
    let other = Connection::open(&path).unwrap();
    other.pragma_update(None, "user_version", 2).unwrap();
    let errors = [
        store.begin(&owned).await.unwrap_err(),
        store.release(&lease, Duration::from_secs(1)).await.unwrap_err(),
    ];
    assert_eq!(errors.map(|error| error.kind()), [StoreErrorKind::Unreadable; 2]);
    other.pragma_update(None, "user_version", 1).unwrap();
    assert_eq!(store.count().await.unwrap().in_flight, 1);
}

#[tokio::test]
async fn a_damaged_file_is_corrupt() {
    let damages: [fn(&mut Vec<u8>); 3] = [
        |bytes| bytes[100..].fill(0xa5),
        |bytes| bytes.truncate(bytes.len() / 2 - 17),
        |bytes| bytes[4096..].fill(0),
    ];
    for (number, damage) in damages.iter().enumerate() {
        let (_directory, path) = directory();
        a_store_with_a_record(&path).await;
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let error = refused_untouched(&path);
        assert_eq!(error.kind(), OpenErrorKind::Corrupt, "damage {number}: {error}");
        assert_eq!(StoreError::from(error).kind(), StoreErrorKind::Unreadable);
    }
}

#[tokio::test]
async fn a_missing_table_is_corrupt() {
    let (_directory, path) = directory();
    a_store_with_a_record(&path).await;
    Connection::open(&path).unwrap().execute_batch("DROP TABLE record").unwrap();
    assert_eq!(refused_untouched(&path).kind(), OpenErrorKind::Corrupt);
}

#[tokio::test]
async fn an_empty_file_becomes_a_store() {
    let (_directory, path) = directory();
    fs::write(&path, "").unwrap();
    a_store_with_a_record(&path).await;
    assert_eq!(SqliteStore::open(&path).unwrap().count().await.unwrap().in_flight, 1);
}

#[cfg(unix)]
#[test]
fn a_new_file_is_its_users_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_directory, path) = directory();
    let _store = SqliteStore::open(&path).unwrap();
    for file in [&path, &file::log_of(&path)] {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn settings_are_checked_before_a_file_is_made() {
    let (_directory, path) = directory();
    let builder = || SqliteStore::builder(&path);
    for builder in [
        builder().busy_timeout(Duration::MAX),
        builder().poll_interval(Duration::ZERO),
        builder().max_payload(usize::MAX),
        builder().max_file_size(1),
    ] {
        assert_eq!(builder.open().unwrap_err().kind(), OpenErrorKind::Setting);
    }
    assert!(!path.exists());
}

#[tokio::test]
async fn many_open_one_new_file_at_once() {
    let (_directory, path) = directory();
    let opened: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || SqliteStore::open(path).unwrap())
        })
        .map(|thread| thread.join().unwrap())
        .collect();
    let first = claim(operation());
    let _ = acquire(&opened[0], &first).await;
    for store in &opened[1..] {
        assert!(!matches!(
            store.begin(&claim(first.id)).await.unwrap(),
            retrysafe_core::Begin::Acquired(_)
        ));
    }
}
