//! The example `actix-orders`.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

mod orders;
#[path = "../../crates/retrysafe-cli/tests/suite/support/readme.rs"]
mod readme;

const NAME: &str = "actix-orders";
const BINARY: &str = env!("CARGO_BIN_EXE_actix-orders");

#[tokio::test]
async fn it_prints_what_the_guide_shows() {
    let service = orders::Service::start("memory:").await;
    let steps = readme::steps(include_str!("../../docs/guides/actix.md"), NAME);
    assert!(steps.len() >= 4, "the guide has lost its example");
    for step in steps {
        step.run("127.0.0.1:3000", &service.address);
    }
}
