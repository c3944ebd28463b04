//! Which library compresses messages: time and ratio, one message at a time, each by itself.
//!
//! `cargo bench --bench deflate` prints two tables, in microseconds a message with the compressed length as a
//! share of the original's, and what an echo of a compressed message costs in memory. Every cell is the
//! shortest of several passes, and the libraries take turns, so that a noisy machine disturbs all alike.
//! docs/deflate.md says what follows from it.

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::time::Instant;

use resound::mask::MaskingKey;
use resound::proto::{
    Codecs, Connection, DeflateParams, DeflateSettings, FrameHeader, Handler, Limits, Message, Opcode,
    Replies, Reply,
};
use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Inflate, InflateFlush};

/// How often each cell is measured.
const PASSES: usize = 5;
/// How long one measurement takes, about.
const PASS_OCTETS: usize = 4_000_000;

fn main() {
    let samples = [
        ("JSON 100", json(100)),
        ("JSON 1 Ki", json(1 << 10)),
        ("JSON 16 Ki", json(16 << 10)),
        ("JSON 1 Mi", json(1 << 20)),
        ("random 4 Ki", noise(4 << 10)),
    ];
    println!("compress, level/memory level; us, share\n");
    let compressors = compressors();
    heading(compressors.iter().map(|(name, _)| name.as_str()));
    table(&samples, compressors, |message| message.to_vec());
    println!("\ninflate what zlib-rs made at level 6; us\n");
    let inflaters = inflaters();
    heading(inflaters.iter().map(|(name, _)| name.as_str()));
    table(&samples, inflaters, |message| zlib_rs(6, 8)(message).1);
    println!("\necho a compressed text of 100 octets, 1 Ki, 16 Ki, 256 Ki; us\n");
    let texts = [100, 1 << 10, 16 << 10, 256 << 10].map(json);
    for (name, settings, no_takeover) in [
        ("in the octets that came", DeflateSettings::default(), true),
        ("compressed anew", DeflateSettings { recompress: true, ..DeflateSettings::default() }, true),
        ("with context takeover", DeflateSettings::default(), false),
    ] {
        print!("| {name:<24} |");
        for message in &texts {
            print!(" {:>7.2} |", echo(settings, no_takeover, message));
        }
        println!();
    }
}

/// Takes a message: how long the output is, and the output.
type Codec = Box<dyn FnMut(&[u8]) -> (usize, Vec<u8>)>;

fn heading<'a>(names: impl Iterator<Item = &'a str>) {
    let names: Vec<_> = names.collect();
    println!("| {:<11} | {} |", "", names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len()));
}

fn table(samples: &[(&str, Vec<u8>)], mut codecs: Vec<(String, Codec)>, prepare: impl Fn(&[u8]) -> Vec<u8>) {
    for (name, message) in samples {
        let input = prepare(message);
        let count = (PASS_OCTETS / (message.len() + 4000)).max(2);
        let mut best = vec![(f64::MAX, 0); codecs.len()];
        for _ in 0..PASSES {
            for ((_, codec), (best, len)) in codecs.iter_mut().zip(&mut best) {
                let start = Instant::now();
                for _ in 0..count {
                    *len = codec(black_box(&input)).0;
                }
                *best = best.min(start.elapsed().as_secs_f64() * 1e6 / count as f64);
            }
        }
        print!("| {name:<11} |");
        for (us, len) in best {
            print!(" {us:.2}, {:.3} |", len as f64 / input.len() as f64);
        }
        println!();
    }
}

fn zlib_rs(level: i32, mem_level: i32) -> Codec {
    let config = DeflateConfig { level, mem_level, window_bits: -15, ..DeflateConfig::default() };
    let mut deflate = Deflate::new_with_config(config);
    let mut output = vec![0; 3 << 20];
    Box::new(move |message| {
        deflate.reset();
        deflate.compress(message, &mut output, DeflateFlush::SyncFlush).unwrap();
        let len = deflate.total_out() as usize - 4;
        (len, if message.len() > 4096 && level != 6 { Vec::new() } else { output[..len].to_vec() })
    })
}

fn compressors() -> Vec<(String, Codec)> {
    let mut all: Vec<(String, Codec)> = Vec::new();
    for (level, mem_level) in [(1, 8), (1, 1), (3, 8), (6, 8)] {
        all.push((format!("zlib-rs {level}/{mem_level}"), zlib_rs(level, mem_level)));
    }
    for (level, mem_level) in [(1, 8), (1, 1), (6, 8)] {
        all.push((format!("zlib {level}/{mem_level}"), zlib(level, mem_level)));
    }
    for level in [1, 6] {
        let level_of = libdeflater::CompressionLvl::new(level).unwrap();
        let mut compressor = libdeflater::Compressor::new(level_of);
        let mut output = vec![0; 3 << 20];
        let codec =
            move |message: &[u8]| (compressor.deflate_compress(message, &mut output).unwrap(), Vec::new());
        all.push((format!("libdeflate {level}"), Box::new(codec)));
    }
    for level in [1, 6] {
        use miniz_oxide::deflate::core;
        let flags = core::create_comp_flags_from_zip_params(level, -15, 0);
        let mut compressor = core::CompressorOxide::new(flags);
        let mut output = vec![0; 3 << 20];
        let codec = move |message: &[u8]| {
            compressor.reset();
            let (_, _, len) = core::compress(&mut compressor, message, &mut output, core::TDEFLFlush::Sync);
            (len - 4, Vec::new())
        };
        all.push((format!("miniz_oxide {level}"), Box::new(codec)));
    }
    all
}

/// The original in C.
fn zlib(level: i32, mem_level: i32) -> Codec {
    use libz_sys as z;
    // SAFETY: all zeros is what deflateInit2 wants to see in a z_stream, its allocators among it.
    let mut stream: Box<MaybeUninit<z::z_stream>> = Box::new(MaybeUninit::zeroed());
    let size = size_of::<z::z_stream>() as i32;
    // SAFETY: `stream` points to a z_stream that stays where it is.
    let result = unsafe {
        z::deflateInit2_(stream.as_mut_ptr(), level, z::Z_DEFLATED, -15, mem_level, 0, z::zlibVersion(), size)
    };
    assert_eq!(result, z::Z_OK);
    let mut output = vec![0; 3 << 20];
    Box::new(move |message| {
        // SAFETY: the stream is initialised, and both buffers are as long as it is told.
        let len = unsafe {
            let stream = stream.as_mut_ptr();
            z::deflateReset(stream);
            (*stream).next_in = message.as_ptr().cast_mut();
            (*stream).avail_in = message.len() as u32;
            (*stream).next_out = output.as_mut_ptr();
            (*stream).avail_out = output.len() as u32;
            z::deflate(stream, z::Z_SYNC_FLUSH);
            (*stream).total_out
        };
        (len as usize - 4, Vec::new())
    })
}

fn inflaters() -> Vec<(String, Codec)> {
    let mut inflate = Inflate::new(false, 15);
    let mut output = vec![0; 3 << 20];
    let zlib_rs: Codec = Box::new(move |message| {
        inflate.reset(false);
        inflate.decompress(message, &mut output, InflateFlush::NoFlush).unwrap();
        (inflate.total_out() as usize, Vec::new())
    });
    let mut decompressor = libdeflater::Decompressor::new();
    let (mut output, mut whole) = (vec![0; 3 << 20], Vec::new());
    let libdeflate: Codec = Box::new(move |message| {
        // It only takes streams that end.
        whole.clear();
        whole.extend_from_slice(message);
        whole.extend_from_slice(&[0, 0, 0xFF, 0xFF, 1, 0, 0, 0xFF, 0xFF]);
        (decompressor.deflate_decompress(&whole, &mut output).unwrap(), Vec::new())
    });
    vec![("zlib-rs".into(), zlib_rs), ("libdeflate".into(), libdeflate)]
}

/// Microseconds for one echo.
fn echo(settings: DeflateSettings, no_takeover: bool, message: &[u8]) -> f64 {
    struct Echo;
    impl Handler for Echo {
        fn message(&mut self, _: Message<'_>) -> Reply {
            Reply::Echo
        }
    }
    let params = DeflateParams {
        server_no_context_takeover: no_takeover,
        client_no_context_takeover: true,
        server_max_window_bits: None,
        client_max_window_bits: None,
    };
    let limits = Limits { message_size_max: 1 << 30, ..Limits::default() };
    let mut codecs = Codecs::new(settings);
    let mut connection = Connection::server();
    assert!(connection.agree_on_deflate(params, &codecs));
    let (_, deflated) = zlib_rs(6, 8)(message);
    let header = FrameHeader {
        rsv1: true,
        masking_key: Some(MaskingKey::from_wire([0; 4])),
        ..FrameHeader::message(Opcode::Text, deflated.len())
    };
    let mut frame = vec![0; header.encoded_len()];
    header.write(&mut frame);
    frame.extend_from_slice(&deflated);
    let (mut buffer, mut replies, mut best) = (frame.clone(), Replies::default(), f64::MAX);
    let count = (PASS_OCTETS / (message.len() + 4000)).max(2);
    for _ in 0..PASSES {
        let start = Instant::now();
        for _ in 0..count {
            buffer.copy_from_slice(&frame);
            connection.receive(&mut buffer, 0, &limits, &mut codecs, &mut replies, &mut Echo).unwrap();
            black_box(&replies);
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e6 / count as f64);
    }
    best
}

/// A list of trades, the same in every run.
fn json(len: usize) -> Vec<u8> {
    let (mut text, mut state) = (String::from("["), 88_172_645_463_325_252u64);
    for id in 0.. {
        if text.len() >= len {
            break;
        }
        state = next(state);
        let side = if state & 1 == 0 { "buy" } else { "sell" };
        text += &format!(
            "{{\"id\":{id},\"user\":\"user{}\",\"price\":{}.{:02},\"side\":\"{side}\",\"ts\":{}}},",
            state % 977,
            state % 5000,
            state % 100,
            1_700_000_000_000u64 + id * 37,
        );
    }
    text.truncate(len);
    text.into_bytes()
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1;
    (0..len)
        .map(|_| {
            state = next(state);
            state as u8
        })
        .collect()
}

/// xorshift64.
fn next(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^ (state << 17)
}
