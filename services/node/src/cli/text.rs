//! How numbers, times and tables read on the command line, and how they are written there. Pure.

use distos_abi::{Authority, ByteRange, Caveats, Fault};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Bytes in a page of a region.
pub const PAGE_BYTES: u64 = 65_536;

/// `1536` as `1.5 KiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    if count == u64::MAX {
        return "no limit".into();
    }
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A span of time.
pub fn micros(span: u64) -> String {
    match span {
        0..=999 => format!("{span} µs"),
        1_000..=999_999 => format!("{:.2} ms", span as f64 / 1e3),
        _ => format!("{:.1} s", span as f64 / 1e6),
    }
}

/// A span of time in words a person plans with.
pub fn span_ms(span: u64) -> String {
    match span / 1000 {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7199 => format!("{} min", s / 60),
        s @ 7200..=172_799 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

/// An instant as `2026-11-21 22:40:48 UTC`.
pub fn instant(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Year, month and day of a day since 1970, by the rule of 400-year eras of the Gregorian calendar
/// (<https://howardhinnant.github.io/date_algorithms.html#civil_from_days>).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// An expiry, with how far away it is.
pub fn expiry(expires_ms: u64, now_ms: u64) -> String {
    match expires_ms {
        u64::MAX => "never".into(),
        past if past <= now_ms => format!("{} (ended)", instant(past)),
        ahead => format!("{} (in {})", instant(ahead), span_ms(ahead - now_ms)),
    }
}

/// The first half of a key or hash, enough to recognise it.
pub fn short(hex: &str) -> &str {
    hex.get(..16).unwrap_or(hex)
}

/// Columns padded to the widest cell, two blanks apart.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells.map(|(cell, w)| format!("{cell:<w$}", w = *w)).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A row of cells.
pub fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|c| (*c).to_owned()).collect()
}

/// The conditions of an authority, one phrase each.
pub fn caveats(caveats: Caveats, now_ms: u64) -> String {
    let mut phrases = Vec::new();
    if caveats.range != ByteRange::WHOLE {
        phrases.push(range(caveats.range));
    }
    if caveats.expires_ms != u64::MAX {
        phrases.push(format!("until {}", expiry(caveats.expires_ms, now_ms)));
    }
    if caveats.quota_bytes != u64::MAX {
        phrases.push(format!("at most {}", bytes(caveats.quota_bytes)));
    }
    if caveats.quota_tasks != u32::MAX {
        phrases.push(format!("at most {} tasks", caveats.quota_tasks));
    }
    if caveats.rate_per_s != u32::MAX {
        phrases.push(format!("at most {} calls/s", caveats.rate_per_s));
    }
    if caveats.end_to_end {
        phrases.push("end to end".to_owned());
    }
    if phrases.is_empty() { "no conditions".into() } else { phrases.join(", ") }
}

fn range(range: ByteRange) -> String {
    let page = range.start / PAGE_BYTES;
    if range.start.is_multiple_of(PAGE_BYTES) && range.len() == PAGE_BYTES {
        format!("page {page} (bytes {}..{})", range.start, range.end)
    } else if range.end == u64::MAX {
        format!("bytes from {}", range.start)
    } else {
        format!("bytes {}..{}", range.start, range.end)
    }
}

/// An authority for machines; absent conditions are left out.
pub fn authority_json(authority: Authority) -> Value {
    let caveats = authority.caveats;
    let mut conditions = serde_json::Map::new();
    let mut put = |key: &str, value: u64, absent: u64| {
        if value != absent {
            conditions.insert(key.to_owned(), json!(value));
        }
    };
    put("expires_ms", caveats.expires_ms, u64::MAX);
    put("range_start", caveats.range.start, 0);
    put("range_end", caveats.range.end, u64::MAX);
    put("quota_bytes", caveats.quota_bytes, u64::MAX);
    put("quota_tasks", caveats.quota_tasks.into(), u32::MAX.into());
    put("rate_per_s", caveats.rate_per_s.into(), u32::MAX.into());
    if caveats.end_to_end {
        conditions.insert("end_to_end".to_owned(), json!(true));
    }
    json!({ "rights": authority.rights.to_string(), "caveats": conditions })
}

/// Reads `65536`, `64K`, `8G` (powers of 1024, an optional `iB` or `B` after the letter).
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let unit = unit.trim_end_matches("ib").trim_end_matches('b');
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("'{text}' is not a size: write 65536, 64K, 16M or 8G")),
    };
    let count = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    count.ok_or_else(|| format!("'{text}' is not a size: write 65536, 64K, 16M or 8G"))
}

/// Reads `90s`, `1m`, `2h`, `7d` as milliseconds.
pub fn parse_span_ms(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a time: write 500ms, 90s, 1m, 2h or 7d");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(wrong)
}

/// Reads an instant of RFC 3339, such as `2026-11-22T10:00:00Z`, as seconds since the Unix epoch.
pub fn parse_instant_s(text: &str) -> Result<u64, String> {
    let instant = OffsetDateTime::parse(text, &Rfc3339).ok();
    let seconds = instant.and_then(|at| u64::try_from(at.unix_timestamp()).ok());
    seconds.ok_or_else(|| format!("'{text}' is no time: write 2026-11-22T10:00:00Z"))
}

/// Reads `A..B`, bytes from A up to but not including B.
pub fn parse_range(text: &str) -> Result<ByteRange, String> {
    let wrong = || format!("'{text}' is not a range: write START..END, such as 0..65536");
    let (start, end) = text.split_once("..").ok_or_else(wrong)?;
    let range = ByteRange {
        start: parse_bytes(start).map_err(|_| wrong())?,
        end: parse_bytes(end).map_err(|_| wrong())?,
    };
    if range.is_empty() { Err(format!("'{text}' holds no byte")) } else { Ok(range) }
}

/// A fault for machines.
pub fn fault_json(fault: &Fault) -> Value {
    json!({ "error": {
        "code": fault.code(), "name": fault.name(), "message": fault.to_string(),
        "wire": fault.to_wire(),
    } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use distos_abi::Rights;

    #[test]
    fn a_person_can_read_sizes_and_times() {
        assert_eq!(bytes(1), "1 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(8 << 30), "8.0 GiB");
        assert_eq!(micros(87), "87 µs");
        assert_eq!(micros(1234), "1.23 ms");
        assert_eq!(instant(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(instant(1_795_300_848_000), "2026-11-21 22:40:48 UTC");
        assert_eq!(parse_instant_s("2026-11-21T22:40:48Z"), Ok(1_795_300_848));
        for bad in ["", "2026-11-21", "1960-01-01T00:00:00Z", "2026-13-01T00:00:00Z"] {
            assert!(parse_instant_s(bad).is_err(), "{bad}");
        }
        assert_eq!(instant(951_827_696_000), "2000-02-29 12:34:56 UTC");
        assert!(expiry(5, 10).contains("ended"));
        assert!(expiry(90_000, 10_000).contains("in 80 s"));
    }

    #[test]
    fn what_a_person_writes_is_read_or_refused_with_an_example() {
        assert_eq!(parse_bytes("65536"), Ok(65536));
        assert_eq!(parse_bytes("8G"), Ok(8 << 30));
        assert_eq!(parse_bytes("64KiB"), Ok(65536));
        for bad in ["", "G", "1x", "-1", "99999999999T", "1.5G"] {
            assert!(parse_bytes(bad).unwrap_err().contains("8G"), "{bad}");
        }
        assert_eq!(parse_span_ms("1m"), Ok(60_000));
        assert_eq!(parse_span_ms("500ms"), Ok(500));
        assert!(parse_span_ms("1").is_err());
        assert_eq!(parse_range("0..64K"), Ok(ByteRange { start: 0, end: 65536 }));
        assert!(parse_range("5..5").is_err());
        assert!(parse_range("5").is_err());
    }

    #[test]
    fn a_page_is_called_a_page() {
        let page = Caveats { range: ByteRange { start: 65536, end: 131_072 }, ..Caveats::NONE };
        assert_eq!(caveats(page, 0), "page 1 (bytes 65536..131072)");
        assert_eq!(caveats(Caveats::NONE, 0), "no conditions");
        let value = authority_json(Authority { rights: Rights::READ, caveats: page });
        assert_eq!(value["caveats"]["range_start"], 65536);
        assert!(value["caveats"].get("expires_ms").is_none());
    }

    #[test]
    fn columns_line_up() {
        let rows = [row(["a", "b"]), row(["ccc", "✓"]), row(["d"])];
        assert_eq!(table(&rows), "a    b\nccc  ✓\nd");
    }
}
