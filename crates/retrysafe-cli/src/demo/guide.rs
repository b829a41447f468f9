//! The curl lines that the demo prints, each with what it shows.

use std::{net::SocketAddr, process, time::Duration};

use retrysafe::{Entropy as _, OnInFlight, OnUnknownOutcome, SystemEntropy};

use crate::{config::ProxyConfig, say};

/// What the lines depend on.
pub(super) struct Guide {
    /// Keys differ from run to run, because the store remembers those of the last one.
    run: u16,
    lease: Duration,
    waits: bool,
    refuses: bool,
}

impl Guide {
    pub(super) fn new(config: &ProxyConfig) -> Self {
        Self {
            run: SystemEntropy.next_u128() as u16,
            lease: config.default.layer.lease,
            waits: matches!(config.default.layer.on_in_flight, OnInFlight::Wait { .. }),
            refuses: matches!(config.default.layer.on_unknown_outcome, OnUnknownOutcome::Refuse),
        }
    }

    /// Prints the lines for a demo that listens there and keeps its records in that store.
    pub(super) fn print(&self, address: SocketAddr, store_url: &str) {
        let url = format!("http://{address}/orders");
        let order = |flags: &str, name: &str, amount: u32| {
            let key = format!("demo-{:04x}-{name}", self.run);
            format!(
                "curl {flags} {url} -H 'Idempotency-Key: {key}' -H 'Content-Type: application/json' -d '{{\"item\":\"book\",\"amount\":{amount}}}'"
            )
        };
        let count = format!("curl -s {url}/count");
        let lease = humantime::format_duration(self.lease);
        let many = if self.waits {
            "50 at once: one execution, and all 50 get its 201"
        } else {
            "50 at once: one execution; the others get 409 in_progress while it runs, its 201 afterwards"
        };
        let killed = if self.refuses {
            format!("409 in_progress until the lease of {lease} is over, then 409 outcome_unknown")
        } else {
            format!(
                "409 in_progress until the lease of {lease} is over, then 201: it ran again, and the processor, which knows the key, did not charge again"
            )
        };
        let step = |text: &str, lines: &[&str]| {
            say(&format!("\n# {text}"));
            for line in lines {
                say(line);
            }
        };

        say("\nAn orders API that charges a card, behind the proxy. In another terminal:");
        step("the first request runs: 201, and a charge", &[&order("-i", "first", 1250)]);
        step(
            "its retry is replayed: the same 201 and order_id, marked idempotent-replayed",
            &[&order("-i", "first", 1250)],
        );
        step("how often the handler really ran, and what the processor charged", &[&count]);
        step(
            "the same key with another amount is refused: 422 key_reused",
            &[&order("-i", "first", 9900)],
        );
        let code = order("-s -o /dev/null -w '%{http_code}\\n'", "many", 1250);
        let parallel = format!("seq 50 | xargs -P 50 -I{{}} {code} | sort | uniq -c");
        step(many, &[&parallel, &count]);
        step(
            "a client that hangs up after 50 ms and comes back gets the one execution's answer",
            &[&order("-s -m 0.05", "hangup", 1250), "sleep 0.5", &order("-i", "hangup", 1250)],
        );
        let pid = process::id();
        step(
            "kill the demo in the middle of a payment",
            &[&format!("{} & sleep 0.15; kill -9 {pid}", order("-s", "kill", 1250))],
        );
        step(
            &format!("start it again with the same command, then retry: {killed}"),
            &[
                &order("-i", "kill", 1250),
                &format!("sleep {}", self.lease.as_secs() + 1),
                &order("-i", "kill", 1250),
                &count,
            ],
        );
        if self.refuses {
            step(
                "what an operator does about it",
                &[
                    &format!("retrysafe keys list --state unknown --store '{store_url}'"),
                    &format!("retrysafe keys resolve ID --did-not-happen --store '{store_url}'"),
                ],
            );
        }
        step("what was answered before the kill is still replayed", &[&order("-i", "first", 1250)]);
        say("");
    }
}
