//! The README's lines for the demo, run as they stand there. What they print must be what the README
//! shows, but for what differs from run to run: addresses, ids, dates and lengths.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::support::readme::steps;

struct Demo {
    child: Child,
    address: String,
}

impl Demo {
    fn start(directory: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_retrysafe"))
            .args(["demo", "--listen", "127.0.0.1:0"])
            .current_dir(directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines
            .find_map(|line| Some(line.unwrap().strip_prefix("listening on http://")?.to_owned()))
            .expect("the demo says where it listens");
        // Read on, or the demo would be stopped by a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_demo_prints_what_the_readme_shows() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let steps = steps(&readme, "demo");
    assert!(steps.len() >= 4, "the README has lost its demo");
    let directory = tempfile::tempdir().unwrap();
    let demo = Demo::start(directory.path());
    for step in steps {
        step.run("127.0.0.1:8080", &demo.address);
    }
}

#[test]
fn what_the_readme_tells_to_make_can_be_made() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let targets: Vec<_> =
        readme.lines().filter_map(|line| line.strip_prefix("make ")?.split(' ').next()).collect();
    assert!(targets.contains(&"demo") && targets.contains(&"test"));
    for target in targets {
        assert!(makefile.contains(&format!("\n{target}:")), "make {target}");
    }
}

#[test]
fn what_the_documents_link_to_is_there() {
    let documents = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"];
    for document in documents {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap();
            let elsewhere = path.starts_with("http") || path.is_empty();
            assert!(elsewhere || root().join(path).exists(), "{document} links to {link}");
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().parent().unwrap()
}
