//! A [`Recorder`] as JSON: percentiles for human eyes, and the whole histogram for programs.
//!
//! Written: `count`, `saturated_count`, `min_ns`, `mean_ns`, `p50_ns` … `max_ns`, `hdr_v2_deflate_base64`.
//! Read: only the histogram and `saturated_count`; the rest follows from them and is not believed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2DeflateSerializer};
use serde::de::Error as _;
use serde::ser::{Error as _, SerializeMap as _};
use serde::{Deserialize, Serialize};

use super::recorder::Recorder;

/// The percentiles written beside a histogram, by key.
pub const PERCENTILE_KEYS: [(&str, f64); 6] = [
    ("p50_ns", 0.5),
    ("p90_ns", 0.9),
    ("p99_ns", 0.99),
    ("p99_9_ns", 0.999),
    ("p99_99_ns", 0.9999),
    ("p99_999_ns", 0.99999),
];

const HISTOGRAM_KEY: &str = "hdr_v2_deflate_base64";

impl Serialize for Recorder {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut octets = Vec::new();
        V2DeflateSerializer::new().serialize(self.histogram(), &mut octets).map_err(S::Error::custom)?;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("count", &self.count())?;
        map.serialize_entry("saturated_count", &self.saturated_count())?;
        map.serialize_entry("min_ns", &self.min_ns())?;
        map.serialize_entry("mean_ns", &self.mean_ns().round())?;
        for (key, quantile) in PERCENTILE_KEYS {
            map.serialize_entry(key, &self.quantile_ns(quantile))?;
        }
        map.serialize_entry("max_ns", &self.max_ns())?;
        map.serialize_entry(HISTOGRAM_KEY, &STANDARD.encode(octets))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Recorder {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Stored {
            saturated_count: u64,
            hdr_v2_deflate_base64: String,
        }
        let stored = Stored::deserialize(deserializer)?;
        let octets = STANDARD
            .decode(&stored.hdr_v2_deflate_base64)
            .map_err(|error| D::Error::custom(format!("{HISTOGRAM_KEY}: {error}")))?;
        let histogram = Deserializer::new()
            .deserialize::<u64, _>(&mut octets.as_slice())
            .map_err(|error| D::Error::custom(format!("{HISTOGRAM_KEY}: {error}")))?;
        Recorder::from_histogram(&histogram, stored.saturated_count)
            .map_err(|error| D::Error::custom(format!("{HISTOGRAM_KEY}: {error:?}")))
    }
}
