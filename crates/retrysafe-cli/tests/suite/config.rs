//! What can't be configured is said in one line, with exit code 2, before anything listens.

use std::{fs, net::TcpListener, path::Path};

use crate::support::{Running, Service, ends, get, nowhere, retrysafe, status};

fn file(folder: &Path, text: &str) -> String {
    let path = folder.join("retrysafe.toml");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn an_unknown_key_names_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "upstream = \"http://127.0.0.1:1\"\n\nleese = \"30s\"\n");
    let (code, error) = ends(retrysafe().args(["proxy", "--config", &path]));
    assert_eq!(code, 2);
    assert!(error.starts_with(&format!("error: {path}:3: ")), "{error}");
    assert!(error.contains("leese"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_bad_value_names_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "[[route]]\npath = \"/orders\"\nlease = \"soon\"\n");
    let (code, error) = ends(retrysafe().args(["proxy", "--config", &path]));
    assert_eq!(code, 2);
    assert!(error.starts_with(&format!("error: {path}:3: lease: ")), "{error}");
}

#[test]
fn e2_a_retention_that_is_too_short_names_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let text =
        "upstream = \"http://127.0.0.1:1\"\n[[route]]\npath = \"/orders\"\nretention = \"1m\"\n";
    let path = file(folder.path(), text);
    let (code, error) = ends(retrysafe().args(["proxy", "--config", &path]));
    assert_eq!(code, 2);
    assert!(error.starts_with(&format!("error: {path}:4: retention: ")), "{error}");
}

#[test]
fn what_does_not_fit_at_the_top_of_the_file_names_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let ended = |lines: &str, flags: &[&str]| {
        // A route takes all of it over, and is not to blame.
        let route = "[[route]]\npath = \"/orders\"\n";
        let path =
            file(folder.path(), &format!("upstream = \"http://127.0.0.1:1\"\n{lines}\n{route}"));
        (ends(retrysafe().args(["proxy", "--config", &path]).args(flags)), path)
    };
    for (lines, line, setting) in [
        ("retention = \"1m\"", 2, "retention"),
        ("max_key_length = 0", 2, "max_key_length"),
        ("max_in_flight = 0", 2, "max_in_flight"),
        ("max_waiters = 0", 2, "max_waiters"),
        ("upstream_timeout = \"0s\"", 2, "upstream_timeout"),
        ("methods = [\"GET\"]", 2, "methods"),
        // What the retention is too short for.
        ("drain = \"1s\"\nmax_execution = \"48h\"", 3, "retention"),
    ] {
        let ((code, error), path) = ended(lines, &[]);
        assert_eq!(code, 2, "{lines}: {error}");
        assert!(error.starts_with(&format!("error: {path}:{line}: {setting}: ")), "{error}");
    }
    // The file is right, and the flag is wrong.
    let ((code, error), _) = ended("retention = \"48h\"", &["--retention", "1m"]);
    assert_eq!(code, 2);
    assert!(error.starts_with("error: retention: "), "{error}");
}

#[test]
fn the_statements_for_a_table_are_printed() {
    let schema = |url: &str| {
        let output = retrysafe().args(["schema", "--store", url]).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, printed, _) = schema("postgres://u:secret@db/shop");
    assert_eq!(code, Some(0));
    assert!(printed.contains("CREATE TABLE IF NOT EXISTS \"retrysafe_record\" ("), "{printed}");
    let (_, printed, _) = schema("mariadb://db/shop?table=app.retries");
    assert!(printed.contains("CREATE TABLE IF NOT EXISTS `app`.`retries` ("), "{printed}");
    for (url, says) in [
        ("redis://u:secret@db", "the store `redis:` has no statements"),
        ("postgres://u:secret@db/shop?table=Bad-Name", "table"),
        ("mongodb://u:secret@db", "no store of the kind `mongodb:`"),
    ] {
        let (code, printed, error) = schema(url);
        assert_eq!((code, &printed[..]), (Some(2), ""), "{url}: {error}");
        assert!(error.contains(says) && !error.contains("secret"), "{url}: {error}");
    }
}

#[test]
fn levels_of_the_log_that_can_not_be_read_exit_2() {
    let (code, error) = ends(retrysafe().env("RUST_LOG", "info,store=loud").args([
        "keys",
        "list",
        "--store",
        "sqlite:none.db",
    ]));
    assert_eq!(code, 2);
    assert!(error.starts_with("error: RUST_LOG: `info,store=loud`"), "{error}");
}

#[test]
fn what_is_missing_or_wrong_on_the_command_line_exits_2() {
    for arguments in [
        &["proxy"][..],
        &["proxy", "--upstream", "127.0.0.1:3000"],
        &["proxy", "--upstream", "http://127.0.0.1:99999"],
        &["proxy", "--upstream", "http://127.0.0.1:3000/prefix"],
        &["proxy", "--upstream", "http://127.0.0.1:1", "--listen", "nowhere"],
        &["proxy", "--upstream", "http://127.0.0.1:1", "--lease", "30"],
        &["proxy", "--upstream", "http://127.0.0.1:1", "--methods", ""],
        // Nothing would be protected.
        &["proxy", "--upstream", "http://127.0.0.1:1", "--methods", "*"],
        &["proxy", "--upstream", "http://127.0.0.1:1", "--methods", "POST|PATCH"],
        &["proxy", "--upstream", "http://127.0.0.1:1", "--problem-base", "not a URI"],
        &["proxy", "--upstream", "http://127.0.0.1:1", "--max-in-flight", "0"],
        &["proxy", "--upstream", "http://127.0.0.1:1", "--config", "/does/not/exist.toml"],
        &["proxy", "--upstream", "http://127.0.0.1:1", "--store", "mongodb://127.0.0.1"],
        &["proxy", "--upstream", "http://127.0.0.1:1", "--store", "redis://127.0.0.1,127.0.0.2"],
        &["demo", "--upstream", "http://127.0.0.1:1"],
        &["keys", "list", "--store", "memory:"],
        // Did it happen or not?
        &["keys", "resolve", "idem_0000000000000000", "--did-not-happen", "--status", "201"],
    ] {
        let (code, error) = ends(retrysafe().args(arguments));
        assert_eq!(code, 2, "{arguments:?}: {error}");
        assert!(error.starts_with("error: "), "{arguments:?}: {error}");
    }
}

#[test]
fn what_is_half_said_is_answered_with_the_whole() {
    let resolve = ["keys", "resolve", "idem_0000000000000000", "--store", "redis://127.0.0.1:1"];
    for (arguments, says) in [
        (&["proxy", "--listen", "8081"][..], "127.0.0.1:8081"),
        (&["proxy", "--listen", ":8081"], "0.0.0.0:8081"),
        (&resolve, "--happened"),
    ] {
        let (code, error) = ends(retrysafe().args(arguments));
        assert!(code == 2 && error.contains(says), "{arguments:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
    }
}

#[test]
fn a_bad_variable_exits_2() {
    let mut command = retrysafe();
    command.args(["proxy", "--upstream", "http://127.0.0.1:1"]).env("RETRYSAFE_RETENTION", "long");
    let (code, error) = ends(&mut command);
    assert_eq!(code, 2);
    assert!(error.contains("retention"), "{error}");
}

#[test]
fn a_busy_port_is_said_in_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let (code, error) = ends(retrysafe().args([
        "proxy",
        "--upstream",
        "http://127.0.0.1:1",
        "--store",
        "memory:",
        "--listen",
        &listen,
    ]));
    assert_eq!(code, 1);
    assert_eq!(error, format!("error: can't listen on {listen}: another process listens there\n"));
}

#[test]
fn a_demo_whose_port_is_busy_says_how_to_choose_another() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let mut demo = retrysafe();
    let (code, error) = ends(demo.current_dir(&folder).args(["demo", "--listen", &listen]));
    assert_eq!((code, error.lines().count()), (1, 1), "{error}");
    let busy = format!("error: can't listen on {listen}: another process listens there; ");
    assert!(error.starts_with(&busy), "{error}");
    assert!(error.contains("make demo ARGS=\"--listen 127.0.0.1:4000\""), "{error}");
}

#[test]
fn the_help_of_the_demo_is_about_the_demo() {
    let help = |arguments: &[&str]| {
        let help = String::from_utf8(retrysafe().args(arguments).output().unwrap().stdout).unwrap();
        // Lines are broken anywhere.
        help.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let (demo, proxy) = (help(&["demo", "--help"]), help(&["proxy", "--help"]));
    for own in [
        "[default: sqlite:retrysafe-demo.db]",
        "renewing it [default: 5s]",
        "[default: off]",
        "--payment",
    ] {
        assert!(demo.contains(own) && !proxy.contains(own), "{own}: {demo}");
    }
    for proxys in ["--upstream <URL>", "--log-format", "sqlite:retrysafe.db", "127.0.0.1:9090"] {
        assert!(!demo.contains(proxys) && proxy.contains(proxys), "{proxys}: {demo}");
    }
}

#[test]
fn a_flag_outranks_a_variable_which_outranks_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let dead = nowhere();
    let live = Service::listen().always(crate::support::OK);
    let text = |upstream| {
        format!("upstream = \"http://{upstream}\"\nlisten = \"127.0.0.1:0\"\nstore = \"memory:\"\n")
    };
    let through = |in_file, in_variable: Option<_>, in_flag: Option<_>| {
        let path = file(folder.path(), &text(in_file));
        let mut command = retrysafe();
        command.args(["proxy", "--config", &path]);
        if let Some(upstream) = in_variable {
            command.env("RETRYSAFE_UPSTREAM", format!("http://{upstream}"));
        }
        if let Some(upstream) = in_flag {
            command.args(["--upstream", &format!("http://{upstream}")]);
        }
        status(&get(Running::start(&mut command).address, "/"))
    };
    assert_eq!(through(live, None, None), 200);
    assert_eq!(through(dead, Some(live), None), 200);
    assert_eq!(through(live, Some(dead), None), 502);
    assert_eq!(through(dead, Some(dead), Some(live)), 200);
}
