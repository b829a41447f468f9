//! How values are written.
#![allow(dead_code, reason = "no store has all of these, and not every store is built in")]

use std::{str::FromStr, time::Duration};

pub(crate) const TEXT: &str = "a name";
pub(crate) const NUMBER: &str = "a number";
pub(crate) const DURATION: &str = "a number and a unit, such as 1500ms or 2s";

pub(crate) fn text(written: &str) -> Option<String> {
    (!written.is_empty()).then(|| written.to_owned())
}

pub(crate) fn number<T: FromStr>(written: &str) -> Option<T> {
    written.parse().ok()
}

/// `250ms`, `2s` or `1m`.
pub(crate) fn duration(written: &str) -> Option<Duration> {
    let (number, unit) = split(written)?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

pub(crate) const SWITCH: &str = "true or false";

pub(crate) fn switch(written: &str) -> Option<bool> {
    written.parse().ok()
}

pub(crate) const SIZE: &str = "a number of bytes, such as 512MiB or 10GiB";

/// `1048576`, `512KiB`, `64MiB` or `10GiB`.
pub(crate) fn size(written: &str) -> Option<u64> {
    let (number, unit) = split(written)?;
    let bytes = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(bytes)
}

fn split(written: &str) -> Option<(u64, &str)> {
    let unit = written.find(|c: char| !c.is_ascii_digit()).unwrap_or(written.len());
    Some((written[..unit].parse().ok()?, &written[unit..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_written() {
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Some(Duration::from_secs(120)));
        for bad in ["", "2", "s", "-1s", "1.5s", "1h", "99999999999999999999s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_read_as_written() {
        assert_eq!(size("1024"), Some(1024));
        assert_eq!(size("10GiB"), Some(10 << 30));
        for bad in ["", "GiB", "1GB", "-1", "99999999999GiB"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }
}
