//! Numbers with their units, for people: written with three significant digits, read with a reason when wrong.

/// A latency: `812 µs`, `4.93 ms`, `1.02 s`.
pub fn latency(value_ns: f64) -> String {
    const SCALES: [(f64, &str); 4] = [(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns")];
    // 999.6 µs would round to "1000 µs": step up to the unit in which three digits suffice.
    let scale = SCALES.into_iter().find(|(scale, _)| value_ns.abs() >= scale * 0.9995);
    let (scale, unit) = scale.unwrap_or((1.0, "ns"));
    format!("{} {unit}", three_digits(value_ns / scale))
}

/// A latency in ns as a count: the same as [`latency`].
pub fn latency_ns(value_ns: u64) -> String {
    latency(value_ns as f64)
}

/// A rate: `98 304 msg/s`, `1.25 M msg/s`.
pub fn rate(per_s: f64, what: &str) -> String {
    if per_s >= 1e6 {
        format!("{} M {what}/s", three_digits(per_s / 1e6))
    } else if per_s >= 1000.0 {
        format!("{} {what}/s", count(per_s.round() as u64))
    } else {
        format!("{} {what}/s", three_digits(per_s))
    }
}

/// A count with thin groups: `1 234 567`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

/// Octets in binary multiples: `512 B`, `1.50 KiB`, `3.20 GiB`.
pub fn octets(value: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = value;
    let mut unit = 0;
    while scaled >= 999.5 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(scaled), UNITS[unit])
}

/// A span of time in seconds: `30 s`, `1.50 s`, `5 min`, `2 h 5 min`.
pub fn span_s(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    if seconds < 120.0 {
        format!("{} s", three_digits(seconds))
    } else if whole < 7200 {
        match whole % 60 {
            0 => format!("{} min", whole / 60),
            rest => format!("{} min {rest} s", whole / 60),
        }
    } else {
        format!("{} h {} min", whole / 3600, whole % 3600 / 60)
    }
}

/// A point in time, s after (or, negative, before) the start: `-5 s`, `30 s`.
pub fn span_s_signed(seconds: f64) -> String {
    if seconds < 0.0 { format!("-{}", span_s(-seconds)) } else { span_s(seconds) }
}

/// A share as a percentage: `99.2 %`, `0.01 %`.
pub fn percent(ratio: f64) -> String {
    let value = ratio * 100.0;
    let text = if value != 0.0 && value.abs() < 0.1 {
        format!("{value:.4}")
    } else if value.abs() < 10.0 || (value > 99.0 && value < 100.0) {
        format!("{value:.2}")
    } else {
        format!("{value:.1}")
    };
    format!("{} %", trim_zeros(&text))
}

/// A quantile as a percentile: 0.999 is `p99.9`.
pub fn percentile(quantile: f64) -> String {
    format!("p{}", trim_zeros(&format!("{:.6}", quantile * 100.0)))
}

/// Reads a duration like `5ms`, `250us`, `1.5s`, in ns.
///
/// # Errors
/// A sentence that names what is wrong and shows what would be right.
pub fn parse_duration_ns(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim());
    let scale = match unit {
        "ns" => 1.0,
        "us" | "µs" | "μs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" | "min" => 60e9,
        "" => return Err(format!("'{text}' has no unit: write 5ms, 250us, 1.5s")),
        _ => return Err(format!("'{unit}' is no unit of time: use ns, us, ms, s or min")),
    };
    let number: f64 =
        number.parse().map_err(|_| format!("'{text}' does not begin with a number: write 5ms"))?;
    Ok(number * scale)
}

fn three_digits(value: f64) -> String {
    let text = match value.abs() {
        magnitude if magnitude >= 99.95 => format!("{value:.0}"),
        magnitude if magnitude >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    trim_zeros(&text)
}

fn trim_zeros(text: &str) -> String {
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_carry_units_and_three_digits() {
        assert_eq!(latency(812_345.0), "812 µs");
        assert_eq!(latency(999_600.0), "1 ms");
        assert_eq!(latency(4_930_000.0), "4.93 ms");
        assert_eq!(latency(0.0), "0 ns");
        assert_eq!(latency(60e9), "60 s");
        assert_eq!(octets(1_610_612_736.0), "1.5 GiB");
        assert_eq!(octets(512.0), "512 B");
        assert_eq!(rate(1_250_000.0, "msg"), "1.25 M msg/s");
        assert_eq!(rate(98_304.4, "msg"), "98\u{202f}304 msg/s");
        assert_eq!(rate(0.5, "msg"), "0.5 msg/s");
        assert_eq!(percent(0.992), "99.2 %");
        assert_eq!(percent(0.0001), "0.01 %");
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(percentile(0.999), "p99.9");
        assert_eq!(percentile(0.5), "p50");
        assert_eq!(span_s(90.0), "90 s");
        assert_eq!(span_s(330.0), "5 min 30 s");
        assert_eq!(span_s(7_500.0), "2 h 5 min");
    }

    #[test]
    fn a_duration_is_read_with_its_unit_or_refused_with_the_cure() {
        assert_eq!(parse_duration_ns("5ms"), Ok(5e6));
        assert_eq!(parse_duration_ns("1.5 s"), Ok(1.5e9));
        assert_eq!(parse_duration_ns("250us"), Ok(250e3));
        assert!(parse_duration_ns("5").unwrap_err().contains("no unit"));
        assert!(parse_duration_ns("5 parsecs").unwrap_err().contains("ns, us, ms"));
        assert!(parse_duration_ns("ms").unwrap_err().contains("number"));
        assert!(parse_duration_ns("1.2.3ms").is_err());
    }
}
