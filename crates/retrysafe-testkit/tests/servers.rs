//! The servers of the tests do what the tests of stores rely on.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use retrysafe_testkit::servers::{
    MariadbServer, NatsCluster, NatsServer, PostgresPair, PostgresServer, RedisCluster, RedisServer,
};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

/// Long enough for an answer of a server that isn't paused, nearly always. A test that waits so long
/// for no answer passes when the machine is slow, too.
const A_WHILE: Duration = Duration::from_millis(300);

async fn listens(addr: SocketAddr) -> bool {
    TcpStream::connect(addr).await.is_ok()
}

#[tokio::test]
async fn redis_keeps_its_data_when_killed() {
    let mut redis = RedisServer::start().await;
    assert_eq!(redis.command(&["SET", "key", "value"]).await, "OK");
    redis.kill().await;
    assert!(!listens(redis.addr()).await);
    redis.restart().await;
    assert_eq!(redis.command(&["GET", "key"]).await, "value");
}

#[tokio::test]
async fn postgres_keeps_its_data_when_killed() {
    let mut postgres = PostgresServer::start().await;
    postgres.query("CREATE TABLE kept AS SELECT 7 AS number").await;
    postgres.kill().await;
    assert!(!listens(postgres.addr()).await);
    postgres.restart().await;
    assert_eq!(postgres.query("SELECT number FROM kept").await, "7");
}

#[tokio::test]
async fn mariadb_keeps_its_data_when_killed() {
    let mut mariadb = MariadbServer::start().await;
    mariadb.query("CREATE TABLE retrysafe.kept AS SELECT 7 AS number").await;
    mariadb.kill().await;
    assert!(!listens(mariadb.addr()).await);
    mariadb.restart().await;
    assert_eq!(mariadb.query("SELECT number FROM retrysafe.kept").await, "7");
}

#[tokio::test]
async fn nats_keeps_its_data_when_killed() {
    let mut nats = NatsServer::start().await;
    let stream = r#"{"name":"kept","subjects":["kept.>"],"storage":"file"}"#;
    let made = nats.request("$JS.API.STREAM.CREATE.kept", stream).await;
    assert!(made.is_some_and(|answer| answer.contains("\"config\"")));
    let stored = nats.request("kept.one", "value").await;
    assert_eq!(stored.as_deref(), Some(r#"{"stream":"kept","seq":1}"#));
    nats.kill().await;
    assert!(!listens(nats.addr()).await);
    nats.restart().await;
    let info = nats.request("$JS.API.STREAM.INFO.kept", "").await;
    assert!(info.is_some_and(|answer| answer.contains("\"messages\":1,")));
}

#[tokio::test]
async fn a_paused_server_answers_when_it_goes_on() {
    let (redis, postgres) = tokio::join!(RedisServer::start(), PostgresServer::start());
    redis.pause();
    let mut reply = std::pin::pin!(redis.command(&["PING"]));
    assert!(timeout(A_WHILE, &mut reply).await.is_err());
    redis.resume();
    assert_eq!(reply.await, "PONG");

    // All of its processes: each connection has one of its own.
    let (postgres, asleep) = (&postgres, "SELECT pg_sleep(600)");
    let sleeping = async || postgres.query(asleep).await;
    let paused = async || {
        let find = format!("SELECT pid FROM pg_stat_activity WHERE query = '{asleep}'");
        let mut child = String::new();
        while child.is_empty() {
            child = postgres.query(&find).await;
        }
        postgres.pause();
        let mut reply = std::pin::pin!(postgres.query("SELECT 3 + 4"));
        assert!(timeout(A_WHILE, &mut reply).await.is_err());
        if cfg!(target_os = "linux") {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
            assert!(stat.contains(") T "), "{stat}");
        }
        postgres.resume();
        assert_eq!(reply.await, "7");
    };
    tokio::select! {
        _ = sleeping() => panic!("it sleeps for ten minutes"),
        () = paused() => {}
    }
}

#[tokio::test]
async fn a_password_is_asked_for() {
    let redis = RedisServer::with(&["--requirepass", "secret"]).await;
    assert_eq!(redis.url(), format!("redis://:secret@{}", redis.addr()));
    assert_eq!(redis.command(&["PING"]).await, "PONG");
    let nats = NatsServer::shared().await;
    assert!(nats.url().contains("retrysafe:retrysafe@"));
    let account = nats.request("$JS.API.INFO", "").await;
    assert!(account.is_some_and(|answer| answer.contains("\"streams\"")));
}

#[tokio::test]
async fn databases_are_each_their_own() {
    let (postgres, mariadb) = tokio::join!(PostgresServer::shared(), MariadbServer::shared());
    assert_ne!(postgres.fresh_database().await, postgres.fresh_database().await);
    assert_ne!(mariadb.fresh_database().await, mariadb.fresh_database().await);
}

#[tokio::test]
async fn a_server_goes_with_its_value() {
    let redis = RedisServer::start().await;
    let (addr, directory) = (redis.addr(), redis.directory().to_owned());
    redis.pause(); // even so
    drop(redis);
    assert!(!directory.exists());
    assert!(!listens(addr).await);
}

/// Run again as a child, this test starts servers and waits to be killed.
#[tokio::test]
async fn servers_go_with_a_test_process_that_is_killed() {
    const ROLE: &str = "RETRYSAFE_TEST_TO_BE_KILLED";
    if env::var_os(ROLE).is_some() {
        let (redis, postgres) = tokio::join!(RedisServer::shared(), PostgresServer::start());
        let (ours, theirs) = (redis.directory().display(), postgres.directory().display());
        let mut out = std::io::stdout();
        writeln!(out, "\nstarted {ours} {} {theirs} {}", redis.addr(), postgres.addr()).unwrap();
        out.flush().unwrap();
        std::future::pending::<()>().await;
    }
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "servers_go_with_a_test_process_that_is_killed", "--nocapture"])
        .env(ROLE, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let started = lines.find_map(|line| line.unwrap().strip_prefix("started ").map(str::to_owned));
    let started = started.expect("servers in a child");
    let words: Vec<_> = started.split(' ').collect();
    let [ours, redis, theirs, postgres] = words[..] else { panic!("{started}") };
    assert!(Path::new(ours).exists() && listens(redis.parse().unwrap()).await);
    assert!(Path::new(theirs).exists() && listens(postgres.parse().unwrap()).await);

    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    for (directory, addr) in [(ours, redis), (theirs, postgres)] {
        let moved = format!("{directory}.over");
        while Path::new(directory).exists() || Path::new(&moved).exists() {
            sleep(Duration::from_millis(10)).await;
        }
        while listens(addr.parse().unwrap()).await {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn a_redis_replica_knows_what_its_link_carried() {
    let primary = RedisServer::start().await;
    let replica = RedisServer::replica_of(&primary).await;
    primary.command(&["SET", "carried", "yes"]).await;
    while replica.command(&["GET", "carried"]).await != "yes" {
        sleep(Duration::from_millis(5)).await;
    }
    replica.cut_link().await;
    primary.command(&["SET", "late", "yes"]).await;
    assert_eq!(replica.command(&["GET", "late"]).await, "");
    replica.mend_link().await;
    assert_eq!(replica.command(&["GET", "late"]).await, "yes");
    replica.cut_link().await;
    primary.command(&["SET", "lost", "yes"]).await;
    replica.promote().await;
    assert_eq!(replica.command(&["SET", "new", "yes"]).await, "OK");
    assert_eq!(replica.command(&["GET", "lost"]).await, "");
}

#[tokio::test]
async fn a_redis_cluster_fails_over() {
    let mut cluster = RedisCluster::start().await;
    assert_eq!(cluster.nodes.len(), 6);
    let before = cluster.primary_of("key").await;
    cluster.nodes[before].command(&["SET", "key", "value"]).await;
    assert_eq!(cluster.fail_over("key").await, before);
    let after = cluster.primary_of("key").await;
    assert_ne!(before, after);
    cluster.nodes[after].command(&["SET", "key", "new"]).await;
    cluster.nodes[before].restart().await;
    assert_eq!(cluster.primary_of("key").await, after);
}

#[tokio::test]
async fn a_postgres_standby_has_what_was_acknowledged() {
    let mut pair = PostgresPair::start().await;
    let url = pair.primary.fresh_database().await;
    pair.primary.query("CREATE TABLE kept AS SELECT 7 AS number").await;
    pair.cut_link().await;
    let unacknowledged = pair.primary.query("INSERT INTO kept VALUES (8)");
    assert!(timeout(A_WHILE, unacknowledged).await.is_err());
    pair.mend_link().await;
    pair.primary.query("INSERT INTO kept VALUES (9)").await;
    pair.primary.kill().await;
    pair.promote().await;
    pair.standby.query("INSERT INTO kept VALUES (10)").await;
    let kept = "SELECT string_agg(number::text, ' ' ORDER BY number) FROM kept WHERE number <> 8";
    assert_eq!(pair.standby.query(kept).await, "7 9 10");
    assert!(pair.on_standby(&url).contains(&pair.standby.addr().to_string()));
}

#[tokio::test]
async fn a_nats_stream_finds_another_leader() {
    let mut cluster = NatsCluster::start().await;
    let stream = r#"{"name":"kept","subjects":["kept.>"],"storage":"file","num_replicas":3}"#;
    let made = cluster.nodes[0].request("$JS.API.STREAM.CREATE.kept", stream).await;
    assert!(made.is_some_and(|answer| answer.contains("\"config\"")));
    // On a busy machine the other nodes hear of it a little later.
    let heard = async { while cluster.nodes[1].request("kept.one", "value").await.is_none() {} };
    tokio::time::timeout(Duration::from_secs(60), heard).await.expect("every node knows of it");
    let killed = cluster.kill_leader_of("kept").await;
    let leader = cluster.leader_of("kept").await.expect("a leader");
    assert_ne!(killed, leader);
    let stored = cluster.nodes[leader].request("kept.two", "value").await;
    let first = "\"seq\":1}";
    assert!(stored.is_some_and(|it| it.contains("\"seq\":") && !it.contains(first)), "it is kept");
    cluster.nodes[killed].restart().await;
}
