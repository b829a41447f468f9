//! Stores by URL, through the public door.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

use std::time::Duration;

use retrysafe_core::{
    Algorithm, Begin, Claim, Fingerprint, OperationId, Owner, Store as _, SystemEntropy,
};
use retrysafe_stores::{OpenStore, open};

fn claim() -> Claim {
    Claim {
        id: OperationId::from_bytes([1; 32]),
        owner: Owner::new(&SystemEntropy),
        fingerprint: Fingerprint { algorithm: Algorithm::from_u32(1), head: [1; 32], body: None },
        lease: Duration::from_secs(30),
        retention: Duration::from_secs(60),
        take_over: false,
    }
}

async fn store_and_inspect_share_their_records(opened: &OpenStore) {
    assert!(matches!(opened.store.begin(&claim()).await.unwrap(), Begin::Acquired(_)));
    assert_eq!(opened.inspect.count().await.unwrap().in_flight, 1);
}

#[tokio::test]
async fn memory() {
    let opened = open("memory:").await.unwrap();
    assert_eq!(opened.url, "memory:");
    assert_eq!(opened.store.about().engine, "memory");
    store_and_inspect_share_their_records(&opened).await;
}

#[cfg(not(feature = "sqlite"))]
#[tokio::test]
async fn sqlite_says_which_feature_it_needs() {
    let error = open("sqlite:a.db").await.unwrap_err();
    assert!(error.is_config() && error.to_string().contains("feature `sqlite`"), "{error}");
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use super::*;

    #[tokio::test]
    async fn a_file_is_created_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("some orders.db");
        for (opening, url) in [
            format!("sqlite:{}", path.display()),
            format!(
                "sqlite://{}?synchronous=normal",
                path.display().to_string().replace(' ', "%20")
            ),
        ]
        .iter()
        .enumerate()
        {
            let opened = open(url).await.unwrap();
            assert_eq!(opened.store.about().engine, "sqlite");
            assert_eq!(opened.url, url.replace("sqlite://", "sqlite:").replace("%20", " "));
            if opening == 0 {
                store_and_inspect_share_their_records(&opened).await;
            } else {
                assert_eq!(opened.inspect.count().await.unwrap().in_flight, 1);
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_can_not_be_opened_is_no_mistake_in_the_url() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing/orders.db");
        let error = open(&format!("sqlite:{}", path.display())).await.unwrap_err();
        assert!(!error.is_config());
        let line = error.to_string();
        assert!(line.contains("missing") && !line.contains('\n'), "{line}");
    }
}
