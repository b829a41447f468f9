//! Several primaries, one of which is away.

use retrysafe_core::{Begin, Found, Inspect as _, OperationId, Store as _, StoreErrorKind};
use retrysafe_sqlx::{PostgresStore, Primaries, Role};
use retrysafe_testkit::servers::{PostgresServer, Wire};

use crate::{Table, acquire, claim, operation};

/// A store at the end of a wire, which is opened without it.
async fn remote() -> (Wire, PostgresStore) {
    let wire = Wire::to(PostgresServer::shared().await.addr()).await;
    let table = Table::new().await;
    let table = Table { url: wire.url_for(&table.url), ..table };
    (wire, table.builder().open_later().unwrap())
}

fn operation_of(list: &Primaries<PostgresStore>, names: &[&str]) -> OperationId {
    loop {
        let id = operation();
        if list.names_of(&id) == names {
            return id;
        }
    }
}

#[tokio::test]
async fn a_lost_primary_is_never_another_one() {
    let ((wire, a), (_kept, b)) = (remote().await, remote().await);
    let list = Primaries::builder().primary("a", a).primary("b", b).build().unwrap();
    let (of_a, of_b) = (operation_of(&list, &["a"]), operation_of(&list, &["b"]));
    wire.refuse().await;

    let error = list.begin(&claim(of_a)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("primary \"a\""), "{error}");
    acquire(&list, &claim(of_b)).await;
    wire.accept().await;
    assert_eq!(acquire(&list, &claim(of_a)).await.attempt, 1);
    assert_eq!(list.count().await.unwrap().in_flight, 2);
}

#[tokio::test]
async fn a_key_that_moves_needs_both_and_leaves_nothing_behind_without() {
    let ((_kept, old), (wire, new)) = (remote().await, remote().await);
    let list = Primaries::builder()
        .member("old", Role::Staying, old.clone())
        .member("new", Role::Joining, new)
        .build()
        .unwrap();
    let id = operation_of(&list, &["old", "new"]);
    wire.refuse().await;
    let refused = claim(id);
    let error = list.begin(&refused).await.unwrap_err();
    // True of both places: the one that could be reached was given back.
    assert_eq!(error.kind(), StoreErrorKind::Unreachable, "{error}");
    let counts = old.count().await.unwrap();
    assert_eq!((counts.in_flight, counts.released), (0, 1));

    wire.accept().await;
    let found = list.begin(&refused).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::Free)), "its owner has given it back: {found:?}");
    assert_eq!(acquire(&list, &claim(id)).await.attempt, 2);
}
