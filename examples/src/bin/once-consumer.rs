//! A consumer of a queue that delivers at least once, which ships each message's order once.
//!
//! The queue is pretended, and does what real ones do: it delivers some messages twice, loses some
//! acknowledgements, and brings back what was not acknowledged. The warehouse is pretended as well,
//! and sometimes packs a parcel without its answer arriving.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt::{self, Display},
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use clap::Parser;
use retrysafe_axum::{OnInFlight, Once, OnceContext, OnceError, Scope, SharedStore};
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, task::JoinSet, time};

/// A consumer of a queue that delivers at least once.
#[derive(Parser)]
struct Arguments {
    /// How many messages there are.
    #[arg(long, default_value_t = 100)]
    messages: u64,

    /// How many of them are worked on at once.
    #[arg(long, default_value_t = 8)]
    consumers: usize,

    /// Where records are kept: memory:, sqlite:PATH, redis://HOST, redis-cluster://HOST,HOST,
    /// postgres://HOST/DATABASE, mysql://HOST/DATABASE or nats://HOST,HOST.
    #[arg(long, default_value = "memory:")]
    store: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, line)) => {
            eprintln!("once-consumer: {line}");
            ExitCode::from(code)
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), (u8, String)> {
    let failed = |what: &str, error: &dyn Display| (1, format!("{what}: {error}"));
    if arguments.consumers == 0 {
        return Err((2, "--consumers: must be 1 or more".to_owned()));
    }

    let opened = match retrysafe_stores::open(&arguments.store).await {
        Ok(opened) => opened,
        Err(error) if error.is_config() => return Err((2, format!("--store: {error}"))),
        Err(error) => return Err(failed("the store can't be opened", &error)),
    };
    let once = Once::builder(opened.store)
        .namespace("shipping")
        // The second of two deliveries waits for the first: it would only come back otherwise.
        .on_in_flight(OnInFlight::wait(Duration::from_secs(10)))
        .build()
        .map_err(|error| (2, error.to_string()))?;

    let (queue, warehouse) = (Queue::with(arguments.messages), Warehouse::default());
    let mut consumers = JoinSet::new();
    for _ in 0..arguments.consumers {
        consumers.spawn(consume(once.clone(), queue.clone(), warehouse.clone()));
    }
    let count = consumers.join_all().await.into_iter().fold(Count::default(), Count::plus);
    println!("{} messages, {} deliveries", arguments.messages, queue.deliveries());
    println!("{count}");
    println!("the warehouse packed {} parcels", warehouse.packed().len());
    Ok(())
}

/// Takes deliveries until every message is done.
async fn consume(once: Once<SharedStore>, queue: Queue, warehouse: Warehouse) -> Count {
    let mut count = Count::default();
    while let Some(message) = queue.next().await {
        let (warehouse, order) = (warehouse.clone(), message.order.clone());
        // The message's id is its key, and its content what is compared: a queue that gave an id
        // away twice would be found out.
        let shipped = once
            .run("ship", &Scope::shared(), message.id.as_str(), &message.order, |context| {
                ship(warehouse, order, context)
            })
            .await;
        match shipped {
            Ok(done) => {
                count.shipped += u32::from(!done.replayed);
                count.replayed += u32::from(done.replayed);
                queue.acknowledge(&message);
            }
            // Another delivery would change nothing about it.
            Err(error) if error.is_definite() => {
                count.rejected += 1;
                eprintln!("once-consumer: message {} is put aside: {error}", message.id);
                queue.put_aside();
            }
            // Nobody knows whether the parcel was packed: the next delivery goes on from there.
            Err(OnceError::Failed { .. }) => {
                count.failed += 1;
                queue.bring_back(message);
            }
            // In progress elsewhere, or the store is down: later, then.
            Err(_) => {
                time::sleep(Duration::from_millis(500)).await;
                queue.bring_back(message);
            }
        }
    }
    count
}

async fn ship(
    warehouse: Warehouse,
    order: Order,
    context: OnceContext,
) -> Result<Parcel, NoAnswer> {
    // The same in every attempt: a parcel that was packed in one that failed is not packed again.
    let key = context.derive_key("pack");
    warehouse.pack(key, &order, context.number()).await
}

#[derive(Clone, Serialize)]
struct Order {
    number: u64,
    item: String,
}

#[derive(Clone, Serialize, Deserialize)]
struct Parcel {
    label: String,
}

/// The warehouse's answer did not arrive.
#[derive(Debug)]
struct NoAnswer;

impl Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the warehouse did not answer")
    }
}

impl std::error::Error for NoAnswer {}

/// What came of the deliveries.
#[derive(Default)]
struct Count {
    shipped: u32,
    replayed: u32,
    failed: u32,
    rejected: u32,
}

impl Count {
    fn plus(self, other: Self) -> Self {
        Self {
            shipped: self.shipped + other.shipped,
            replayed: self.replayed + other.replayed,
            failed: self.failed + other.failed,
            rejected: self.rejected + other.rejected,
        }
    }
}

impl Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shipped, replayed, failed, rejected } = self;
        write!(f, "{shipped} shipped, {replayed} answered from the record, ")?;
        write!(f, "{failed} failed and came back, {rejected} put aside")
    }
}

/// A pretended queue. It delivers every fifth message twice, loses the first acknowledgement of
/// every third, and ends when all are acknowledged or put aside.
#[derive(Clone)]
struct Queue(Arc<(Mutex<Waiting>, Notify)>);

struct Waiting {
    messages: VecDeque<Message>,
    delivered: u64,
    /// Deliveries that are under way.
    open: usize,
    lost: HashSet<String>,
}

#[derive(Clone)]
struct Message {
    id: String,
    order: Order,
}

impl Queue {
    fn with(messages: u64) -> Self {
        let deliveries = (1..=messages).flat_map(|number| {
            let order = Order { number, item: "book".to_owned() };
            let message = Message { id: format!("message-{number}"), order };
            let times = if number % 5 == 0 { 2 } else { 1 };
            std::iter::repeat_n(message, times)
        });
        let messages = deliveries.collect();
        let waiting = Waiting { messages, delivered: 0, open: 0, lost: HashSet::new() };
        Self(Arc::new((Mutex::new(waiting), Notify::new())))
    }

    async fn next(&self) -> Option<Message> {
        loop {
            // Before looking, so that nothing that comes after the look is missed.
            let changed = self.0.1.notified();
            {
                let mut waiting = self.waiting();
                if let Some(message) = waiting.messages.pop_front() {
                    waiting.delivered += 1;
                    waiting.open += 1;
                    return Some(message);
                }
                if waiting.open == 0 {
                    return None;
                }
            }
            changed.await;
        }
    }

    fn acknowledge(&self, message: &Message) {
        let lost = {
            let mut waiting = self.waiting();
            message.order.number.is_multiple_of(3) && waiting.lost.insert(message.id.clone())
        };
        if lost {
            return self.bring_back(message.clone());
        }
        self.close(|_| {});
    }

    fn put_aside(&self) {
        self.close(|_| {});
    }

    fn bring_back(&self, message: Message) {
        self.close(|waiting| waiting.messages.push_back(message));
    }

    fn close(&self, change: impl FnOnce(&mut Waiting)) {
        let mut waiting = self.waiting();
        waiting.open -= 1;
        change(&mut waiting);
        drop(waiting);
        self.0.1.notify_waiters();
    }

    fn deliveries(&self) -> u64 {
        self.waiting().delivered
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pretended warehouse. It packs once per key; in the first attempt of every seventh order it
/// packs, and its answer gets lost.
#[derive(Clone, Default)]
struct Warehouse(Arc<Mutex<HashMap<String, Parcel>>>);

impl Warehouse {
    async fn pack(&self, key: String, order: &Order, attempt: u32) -> Result<Parcel, NoAnswer> {
        time::sleep(Duration::from_millis(5)).await;
        let label = || Parcel { label: format!("{} no. {}", order.item, order.number) };
        let parcel = self.packed().entry(key).or_insert_with(label).clone();
        match order.number.is_multiple_of(7) && attempt == 1 {
            true => Err(NoAnswer),
            false => Ok(parcel),
        }
    }

    fn packed(&self) -> MutexGuard<'_, HashMap<String, Parcel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
