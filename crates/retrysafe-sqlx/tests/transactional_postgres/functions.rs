//! Any function whose record commits with its work: `Once` on the same store.

use retrysafe_axum::{Code, NotLent, Once, OnceError, Scope};
use retrysafe_sqlx::{PostgresTransaction, TransactionalPostgres};
use serde::{Deserialize, Serialize};

use crate::{Bank, PATIENCE, credit};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Refusal {
    NotEnough,
    Busy,
    Unclear,
}

fn once(bank: &Bank) -> Once<TransactionalPostgres> {
    let once = Once::builder(bank.store.clone());
    once.settings(|settings| settings.store_deadline = PATIENCE * 2).build().unwrap()
}

#[tokio::test]
async fn o2_a_value_commits_with_the_work() {
    let bank = Bank::new().await;
    let once = once(&bank);
    let run = || {
        once.run("credit", &Scope::shared(), "one", &5, |context| async move {
            let mut transaction: PostgresTransaction = context.lent().unwrap();
            credit(&mut transaction).await?;
            assert_eq!(
                context.lent::<PostgresTransaction>().unwrap_err(),
                NotLent::InUse,
                "it is lent to one at a time"
            );
            Ok::<_, sqlx::Error>(7_u32)
        })
    };
    let first = run().await.unwrap();
    assert_eq!((first.value, first.replayed, first.recorded), (7, false, true));
    let retry = run().await.unwrap();
    assert_eq!((retry.value, retry.replayed), (7, true));
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn o2_an_error_undoes_the_work_whatever_becomes_of_it() {
    let bank = Bank::new().await;
    let once = once(&bank);
    for (key, refusal, kept) in
        [("one", Refusal::NotEnough, 1), ("two", Refusal::Busy, 1), ("three", Refusal::Unclear, 1)]
    {
        let failed = once
            .run("credit", &Scope::shared(), key, &5, |context| async move {
                let mut transaction: PostgresTransaction = context.lent().unwrap();
                credit(&mut transaction).await.unwrap();
                Err::<u32, _>(refusal)
            })
            .keep_if(|refusal| *refusal == Refusal::NotEnough)
            .release_if(|refusal| *refusal == Refusal::Busy)
            .await;
        assert!(matches!(failed, Err(OnceError::Failed { .. })), "{failed:?}");
        assert_eq!((bank.balance().await, bank.records().await), (0, (kept, kept)));
    }
}

#[tokio::test]
async fn a_function_that_commits_by_hand_is_found_out() {
    let bank = Bank::new().await;
    let once = once(&bank);
    let failed = once
        .run("credit", &Scope::shared(), "one", &5, |context| async move {
            let mut transaction: PostgresTransaction = context.lent().unwrap();
            credit(&mut transaction).await?;
            sqlx::raw_sql("COMMIT").execute(&mut *transaction).await?;
            Ok::<_, sqlx::Error>(7_u32)
        })
        .await
        .unwrap_err();
    assert_eq!(failed.code(), Some(Code::HandlerFailed));
    assert!(!failed.is_definite());
}
