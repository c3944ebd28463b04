//! The surface connections x rate x size: one search over the rate for each combination, put side by side.
//!
//! A [`Cell`] is one search, whole: what it came to and every step, so that latency over connections, rate and size can
//! be drawn again from the file alone. What could not be measured is a lower bound or says why; it is never left blank.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::model::{Cell, Ending, RunResult};
use super::units;

impl Cell {
    /// Which one it is: `500 connections, 1KiB`.
    pub fn title(&self) -> String {
        title(self.connections, &self.size)
    }

    /// What it came to in a sentence, and why.
    pub fn answer(&self) -> String {
        let why = self.error.as_ref().or(self.capacity.limit.as_ref().map(|limit| &limit.cause));
        self.capacity.answer() + &why.map_or(String::new(), |why| format!("; {why}"))
    }

    /// Whether the question was answered: a confirmed knee, or the end of the range.
    pub fn is_answered(&self) -> bool {
        matches!(self.capacity.ending, Ending::Found | Ending::EndOfRange)
    }

    /// The knee in a few words: `132 000 msg/s`, `≥ 320 000 msg/s`, `< 100 msg/s`.
    pub fn knee(&self) -> String {
        let lowest = self.steps.iter().map(|step| step.load).reduce(f64::min);
        match (self.capacity.ending, self.capacity.knee) {
            (Ending::Found, Some(knee)) => self.capacity.load(knee),
            (Ending::EndOfRange | Ending::Unknown | Ending::Interrupted, Some(knee)) => {
                format!("≥ {}", self.capacity.load(knee))
            }
            (Ending::NeverGood, _) => {
                format!("< {}", self.capacity.load(lowest.expect("a load was not good")))
            }
            (Ending::Unconfirmed, _) => "not confirmed".to_owned(),
            (Ending::Interrupted, None) => "ended early".to_owned(),
            _ => "not measured".to_owned(),
        }
    }

    /// What limits it, in a word or two.
    pub fn limited_by(&self) -> &'static str {
        match (&self.capacity.limit, self.capacity.ending) {
            _ if self.error.is_some() => "an error",
            (Some(limit), _) => limit.kind.title(),
            (None, Ending::EndOfRange) => "end of the range",
            (None, Ending::Interrupted) => "ended early",
            (None, _) => "",
        }
    }

    /// What a message costs the server, where that is known: `2.1 µs CPU/msg`.
    pub fn cost(&self) -> Option<String> {
        let per_core = self.capacity.msgs_per_s_per_server_core.filter(|rate| *rate > 0.0)?;
        Some(format!("{} CPU/msg", units::latency(1e9 / per_core)))
    }

    /// The knee with its spread, what limits it, and what a message costs: the lines of a table's cell.
    pub fn lines(&self) -> Vec<String> {
        // Lower bounds lie together for another reason.
        let apart = self.capacity.knees.len() > 1 && self.capacity.ending == Ending::Found;
        let spread = self.capacity.spread_ratio.filter(|_| apart);
        let spread = spread.map_or(String::new(), |spread| format!(" (spread {})", units::percent(spread)));
        let mut lines = vec![self.knee() + &spread, self.limited_by().to_owned()];
        lines.extend(self.cost());
        lines
    }
}

/// A size with its unit: `64 B`, `1KiB`.
pub fn size_title(size: &str) -> String {
    let plain = size.bytes().all(|digit| digit.is_ascii_digit());
    if plain { format!("{size} B") } else { size.to_owned() }
}

/// A combination in words: `500 connections, 1KiB`.
pub fn title(connections: u64, size: &str) -> String {
    format!("{} connections, {}", units::count(connections), size_title(size))
}

/// The axes of a surface: connections and sizes, each in the order of its cells.
pub fn axes(cells: &[Cell]) -> (Vec<u64>, Vec<String>) {
    let (mut connections, mut sizes) = (Vec::new(), Vec::new());
    for cell in cells {
        if !connections.contains(&cell.connections) {
            connections.push(cell.connections);
        }
        if !sizes.contains(&cell.size) {
            sizes.push(cell.size.clone());
        }
    }
    (connections, sizes)
}

/// The cell of these connections and this size; none where the surface ended before it.
pub fn at<'a>(cells: &'a [Cell], connections: u64, size: &str) -> Option<&'a Cell> {
    cells.iter().find(|cell| cell.connections == connections && cell.size == size)
}

/// The cell that a surface's run is of: that with the highest knee.
pub fn of_run(result: &RunResult) -> Option<&Cell> {
    let connections = result.plan.connections;
    result.surface.iter().find(|cell| cell.connections == connections && cell.steps == result.search)
}

/// The surface for a terminal: a row for each count of connections, a column for each size, and below it why some are
/// not answered.
pub fn text(cells: &[Cell]) -> String {
    let (rows, columns) = axes(cells);
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    let header = ["connections".to_owned()].into_iter().chain(columns.iter().map(|size| size_title(size)));
    table.set_header(header);
    for (index, connections) in rows.iter().enumerate() {
        let mut row = vec![units::count(*connections)];
        row.extend(columns.iter().map(|size| match at(cells, *connections, size) {
            Some(cell) => cell.lines().join("\n"),
            None => "not begun".to_owned(),
        }));
        if index > 0 {
            table.add_row(vec![String::new(); row.len()]);
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = table.trim_fmt();
    for cell in cells.iter().filter(|cell| !cell.is_answered()) {
        text.push_str(&format!("\n{}: {}", cell.title(), cell.answer()));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::model::{Capacity, Limit, LimitKind, Over, SearchStep};

    fn cell(connections: u64, size: &str, ending: Ending, knee: Option<f64>) -> Cell {
        let limit = Limit {
            kind: LimitKind::Generator,
            cause: "the load thread was 97 % busy".to_owned(),
            cure: String::new(),
            counter: None,
        };
        Cell {
            connections,
            size: size.to_owned(),
            min_octets: 0,
            max_octets: 0,
            capacity: Capacity {
                over: Over::Rate,
                ending,
                knee,
                knees: knee.map_or_else(Vec::new, |knee| vec![knee, knee * 1.1]),
                spread_ratio: knee.map(|_| 0.1),
                precision_ratio: 0.05,
                limit: (ending == Ending::Unknown).then_some(limit),
                msgs_per_s_per_server_core: knee.map(|_| 400_000.0),
                connection: None,
                law: None,
                law_refused: None,
            },
            steps: vec![SearchStep { load: 100.0, ..SearchStep::default() }],
            error: None,
        }
    }

    #[test]
    fn a_cell_that_was_not_measured_to_its_end_is_a_lower_bound_or_says_why() {
        let cells = [
            cell(50, "20", Ending::Found, Some(5_000.0)),
            cell(50, "1KiB", Ending::Unknown, Some(320.0)),
            cell(500, "20", Ending::NeverGood, None),
        ];
        assert_eq!(axes(&cells), (vec![50, 500], vec!["20".to_owned(), "1KiB".to_owned()]));
        assert_eq!(cells[0].lines(), ["5\u{202f}000 msg/s (spread 10 %)", "", "2.5 µs CPU/msg"]);
        assert_eq!(cells[1].lines()[..2], ["≥ 320 msg/s", "the generator"]);
        assert_eq!(cells[2].knee(), "< 100 msg/s");
        let text = text(&cells);
        assert!(text.contains("not begun"), "{text}");
        assert!(text.contains("50 connections, 1KiB: at least 320 msg/s; what is above could not"), "{text}");
        assert!(text.contains("97 % busy") && !text.contains("50 connections, 20 B:"), "{text}");
    }
}
