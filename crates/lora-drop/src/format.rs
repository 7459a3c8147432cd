//! Numbers for people: grouped digits, durations, bytes, percentages. An infinite or NaN value is a
//! dash.

/// The dash for a missing, infinite or NaN value.
pub const NONE: &str = "–";

/// Digits in groups of three: 1,234,567.
pub fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A count and its noun, in the singular for one: 1 row, 2 rows.
pub fn counted(n: usize, noun: &str) -> String {
    format!("{} {noun}{}", grouped(n), if n == 1 { "" } else { "s" })
}

/// Seconds, at the precision that matters: 0.42 s, 12.3 s, 1 m 23 s, 2 h 03 m.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return NONE.to_string();
    }
    // Compared after rounding, so that 59.97 is a minute and not "60.0 s".
    let whole = seconds.round() as u64;
    match seconds {
        s if s < 9.995 => format!("{s:.2} s"),
        s if s < 59.95 => format!("{s:.1} s"),
        _ if whole < 3600 => format!("{} m {:02} s", whole / 60, whole % 60),
        _ => {
            let minutes = (seconds / 60.0).round() as u64;
            format!("{} h {:02} m", minutes / 60, minutes % 60)
        }
    }
}

/// The time left, in whole seconds: more digits would only flicker.
pub fn time_left(seconds: f64) -> String {
    let whole = seconds.round();
    if (0.0..60.0).contains(&whole) { format!("{whole} s") } else { duration(whole) }
}

/// Bytes in binary units: 512 B, 1.4 KiB, 293.1 MiB, 2.40 GiB.
pub fn bytes(n: u64) -> String {
    let x = n as f64;
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", x / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", x / 1_048_576.0),
        _ => format!("{:.2} GiB", x / 1_073_741_824.0),
    }
}

/// A fraction as a percentage: 58.3 %.
pub fn percent(fraction: f64) -> String {
    match fixed(fraction * 100.0, 1) {
        none if none == NONE => none,
        number => number + " %",
    }
}

/// A number with fixed decimals: metrics have three, losses four. From 10⁹ up it is written in
/// scientific form.
pub fn fixed(x: f64, decimals: usize) -> String {
    match x.abs() {
        size if size < 1e9 => format!("{x:.decimals$}"),
        size if size.is_finite() => format!("{x:.1e}"),
        _ => NONE.to_string(),
    }
}

/// Epochs: whole ones without decimals, others with two.
pub fn epoch(epochs: f64) -> String {
    if epochs.fract() == 0.0 { epochs.to_string() } else { fixed(epochs, 2) }
}

/// Serialises whole numbers as integers.
///
/// # Errors
/// Those of the serialiser.
pub fn whole_as_integer<S: serde::Serializer>(x: &f64, out: S) -> Result<S::Ok, S::Error> {
    if x.fract() == 0.0 && x.abs() < 1e15 { out.serialize_i64(*x as i64) } else { out.serialize_f64(*x) }
}

/// Two significant digits in scientific form, as for learning rates: 4.1e-4.
pub fn scientific(x: f64) -> String {
    match x {
        0.0 => "0".to_string(),
        x if x.is_finite() => format!("{x:.1e}"),
        _ => NONE.to_string(),
    }
}

/// Tokens per second, whole and grouped.
pub fn rate(tokens_per_second: f64) -> String {
    if tokens_per_second.is_finite() && tokens_per_second >= 0.0 {
        grouped(tokens_per_second.round() as usize)
    } else {
        NONE.to_string()
    }
}

/// Rising layer numbers, with runs of three and more as ranges: 0, 3–5, 11.
pub fn layers(numbers: &[usize]) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut i = 0;
    while i < numbers.len() {
        let mut end = i;
        while end + 1 < numbers.len() && numbers[end + 1] == numbers[end] + 1 {
            end += 1;
        }
        if end >= i + 2 {
            out.push(format!("{}–{}", numbers[i], numbers[end]));
        } else {
            out.extend(numbers[i..=end].iter().map(usize::to_string));
        }
        i = end + 1;
    }
    out.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")];
        for (n, text) in cases {
            assert_eq!(grouped(n), text);
        }
        assert_eq!(counted(1, "row"), "1 row");
        assert_eq!(counted(1200, "row"), "1,200 rows");
    }

    #[test]
    fn durations_round_into_the_next_unit() {
        let cases = [
            (0.0, "0.00 s"),
            (0.421, "0.42 s"),
            (9.999, "10.0 s"),
            (12.34, "12.3 s"),
            (59.97, "1 m 00 s"),
            (83.4, "1 m 23 s"),
            (3599.7, "1 h 00 m"),
            (7384.0, "2 h 03 m"),
            (f64::NAN, "–"),
            (f64::INFINITY, "–"),
            (-1.0, "–"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
        assert_eq!(time_left(7.6), "8 s");
        assert_eq!(time_left(59.7), "1 m 00 s");
        assert_eq!(time_left(f64::NAN), "–");
    }

    #[test]
    fn bytes_have_binary_units() {
        let cases =
            [(512, "512 B"), (1434, "1.4 KiB"), (307_337_625, "293.1 MiB"), (2_576_980_378, "2.40 GiB")];
        for (n, text) in cases {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn numbers_are_formatted_and_invalid_ones_are_a_dash() {
        assert_eq!(percent(0.58333), "58.3 %");
        assert_eq!(fixed(0.78431, 3), "0.784");
        assert_eq!(fixed(1.234e12, 3), "1.2e12");
        assert_eq!(scientific(4.12e-4), "4.1e-4");
        assert_eq!(scientific(0.0), "0");
        assert_eq!(rate(2431.4), "2,431");
        for text in [percent(f64::NAN), fixed(f64::INFINITY, 3), scientific(f64::NAN), rate(-1.0)] {
            assert_eq!(text, NONE);
        }
    }

    #[test]
    fn runs_of_layers_are_drawn_together() {
        assert_eq!(layers(&[]), "");
        assert_eq!(layers(&[4]), "4");
        assert_eq!(layers(&[0, 1, 3, 4, 5, 9, 10, 11]), "0, 1, 3–5, 9–11");
    }
}
