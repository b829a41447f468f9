//! Runs what a README shows. Shared by the tests of the binary and of the examples.

use std::process::Command;

/// A block of `$ command` lines, each with what it prints.
pub(crate) struct Step {
    command: String,
    shown: String,
}

/// The blocks marked ```` ```console OF ````.
pub(crate) fn steps(readme: &str, of: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let opening = format!("```console {of}");
    let mut inside = false;
    for line in readme.lines() {
        if line.starts_with("```") {
            inside = line == opening;
        } else if !inside {
        } else if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { command: command.to_owned(), shown: String::new() });
        } else if let Some(step) = steps.last_mut() {
            step.shown.push_str(line);
            step.shown.push('\n');
        }
    }
    steps
}

impl Step {
    /// Runs the command against a server at `address`, where the README says `shown_address`, and
    /// compares what it prints with what the README shows.
    pub(crate) fn run(&self, shown_address: &str, address: &str) {
        let command = self.command.replace(shown_address, address);
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(steady(&printed), steady(&self.shown), "{}", self.command);
    }
}

/// What stays the same from run to run: every line, with ids cut and dates gone.
fn steady(text: &str) -> Vec<String> {
    let cut = |line: &str| {
        let mut words = Vec::new();
        for word in line.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
            let hex = word.bytes().take_while(u8::is_ascii_hexdigit).count();
            words.push(if hex >= 16 { format!("ID{}", &word[hex..]) } else { word.to_owned() });
        }
        words.concat()
    };
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    lines
        .map(|line| if line.starts_with("date: ") { "date".to_owned() } else { cut(line) })
        .collect()
}
