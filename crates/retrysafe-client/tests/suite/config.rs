//! One configuration, from TOML or from the environment.

use std::time::Duration;

use retrysafe_client::{Client, ClientConfig, policy::KeyPlacement};

#[test]
fn every_key_from_toml() {
    let config = ClientConfig::from_toml(
        r#"
        preset = "stripe"
        header = "X-Request-Key"
        quote = true
        methods = ["POST", "put"]
        max_key_length = 100
        retention = "12h"
        key = "content"
        key_prefix = "k_"
        salt = "tenant-7"
        excluded = ["/sent_at", "/trace"]
        key_as_uuid = false
        attempts = 5
        deadline = "5m"
        attempt_timeout = "10s"
        backoff_transient = "20ms"
        backoff_throttled = "2s"
        backoff_cap = "10s"
        max_retry_after = "30s"
        retry_budget = 100
        max_whole_answer = "64KiB"
        max_repeatable_body = 1000
        cache_ttl = "10m"
        cache_capacity = 50
        "#,
    )
    .unwrap();
    let settings = config.settings().unwrap();
    assert_eq!(settings.dialect.name, "stripe");
    assert_eq!(settings.dialect.placement, KeyPlacement::Header("x-request-key".parse().unwrap()));
    assert_eq!(settings.dialect.retention, Duration::from_secs(12 * 3600));
    assert_eq!(settings.dialect.max_key_length, 100);
    assert_eq!(settings.keys.longest(), 66);
    assert_eq!(settings.retries.attempts, 5);
    assert_eq!(settings.retries.deadline, Duration::from_secs(300));
    assert_eq!(settings.retries.attempt_timeout, Duration::from_secs(10));
    assert_eq!(settings.retries.backoff.transient, Duration::from_millis(20));
    assert_eq!(settings.retries.backoff.throttled, Duration::from_secs(2));
    assert_eq!(settings.retries.backoff.cap, Duration::from_secs(10));
    assert_eq!(settings.retries.max_retry_after, Duration::from_secs(30));
    assert_eq!(settings.retries.budget.capacity, 100);
    assert_eq!((settings.max_whole_answer, settings.max_repeatable_body), (64 * 1024, 1000));
    let share = settings.shared_answers.unwrap();
    assert_eq!((share.capacity, share.ttl), (50, Duration::from_secs(600)));
    assert!(Client::builder().config(&config).unwrap().build().is_ok());
}

#[test]
fn the_environment_wins_and_nothing_named_is_the_default() {
    let file = ClientConfig::from_toml("attempts = 5\ndeadline = \"5m\"").unwrap();
    let variables = [
        ("RETRYSAFE_CLIENT_ATTEMPTS", "7"),
        ("RETRYSAFE_CLIENT_KEY", "content"),
        ("RETRYSAFE_CLIENT_EXCLUDED", "/a, /b"),
        ("RETRYSAFE_CLIENT_SHARE_ANSWERS", "true"),
        ("RETRYSAFE_STORE", "somebody else's"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let settings = file.with_variables(variables).unwrap().settings().unwrap();
    assert_eq!(settings.retries.attempts, 7);
    assert_eq!(settings.retries.deadline, Duration::from_secs(300));
    assert_eq!(settings.shared_answers.unwrap().capacity, 10_000);
    let empty = ClientConfig::default().settings().unwrap();
    assert_eq!(empty.dialect.name, "draft07");
    assert!(empty.shared_answers.is_none());
    assert_eq!(empty.retries, retrysafe_client::RetryPolicy::default());
}

#[test]
fn what_is_wrong_is_named() {
    for (toml, says) in [
        ("attempt = 5", "unknown field `attempt`"),
        ("\n\nattempts = \"many\"", "line 3"),
        ("deadline = \"60\"", "such as `60s`"),
        ("deadline = 60", "such as `60s`"),
        ("max_whole_answer = \"4XB\"", "such as `4MiB`"),
        ("key = \"uuid\"", "uuid-v4, uuid-v7 or content"),
        ("attempts = [\"1\", \"2\"]", "list"),
    ] {
        let error = ClientConfig::from_toml(toml).unwrap_err().to_string();
        assert!(error.contains(says), "{toml}: {error}");
    }
    for (toml, setting) in [
        ("preset = \"braintree\"", "preset"),
        ("header = \"a\"\nkey_in_body = \"/b\"", "key_in_body"),
        ("key_in_body = \"b\"", "key_in_body"),
        ("key_in_body = \"/b/c\"", "key_in_body"),
        ("excluded = [\"/a\"]", "excluded"),
        ("key_prefix = \"a\"", "key_prefix"),
        ("key = \"content\"\nexcluded = [\"a\"]", "excluded"),
        ("key = \"content\"\npreset = \"adyen\"", "key"),
        ("attempts = 0", "attempts"),
        ("retention = \"20s\"", "retention"),
        ("methods = [\"P T\"]", "methods"),
    ] {
        let error = ClientConfig::from_toml(toml).unwrap().settings().unwrap_err();
        assert_eq!(error.setting(), setting, "{toml}: {error}");
    }
    let error = ClientConfig::from_toml("preset = \"braintree\"").unwrap().settings().unwrap_err();
    let error = error.to_string();
    assert!(error.contains("`braintree`") && error.contains("draft07, stripe, adyen"), "{error}");
    let typo = [("RETRYSAFE_CLIENT_DEADLIN".to_owned(), "1s".to_owned())];
    let error = ClientConfig::default().with_variables(typo).unwrap_err().to_string();
    assert!(error.contains("RETRYSAFE_CLIENT_DEADLIN"), "{error}");
}
