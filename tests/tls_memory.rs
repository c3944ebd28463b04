//! What an idle TLS connection costs in user memory, and that an echo allocates nothing, counted by the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use resound::net::tls::{
    Opened, SelfSigned, TlsClient, TlsClientOptions, TlsLink, TlsOptions, TlsServer, TlsVersions,
};

/// Each is like the others: more would only take longer.
const CONNECTION_COUNT: usize = 500;
/// Octets for each idle link of a server, the link itself included.
const OCTETS_MAX: usize = 3 << 10;
/// Octets for each handshake that has begun: what the transport counts for it.
const HANDSHAKE_OCTETS_MAX: usize = 5 << 10;
/// Before a client has spoken, there is only the link.
const SILENT_OCTETS_MAX: usize = 128;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator; the counters do not change that.
#[allow(unsafe_code, reason = "counting what is allocated is what this test is for")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test, since the counters are the process's.
#[test]
fn an_idle_link_owns_its_keys_and_an_echo_allocates_nothing() {
    let self_signed = Some(SelfSigned { names: vec!["localhost".to_owned()] });
    let (server, _) = TlsServer::new(TlsOptions { self_signed, ..Default::default() }).unwrap();

    let before = LIVE.load(Relaxed);
    let mut links: Vec<TlsLink> = Vec::with_capacity(CONNECTION_COUNT);
    links.extend((0..CONNECTION_COUNT).map(|_| server.link()));
    let silent = (LIVE.load(Relaxed) - before) / CONNECTION_COUNT;
    println!("{silent} octets before the client has spoken");
    assert!((8..=SILENT_OCTETS_MAX).contains(&silent), "{silent} octets");
    drop(links);

    for versions in [TlsVersions::Tls12, TlsVersions::Tls13] {
        let client = TlsClient::new(&client_options(versions)).unwrap();
        // What rustls makes once.
        drop(used(&server, &client));
        half_a_handshake(&server, &client);
        let before = LIVE.load(Relaxed);
        let mut links = Vec::with_capacity(CONNECTION_COUNT);
        for _ in 0..CONNECTION_COUNT {
            links.push(used(&server, &client).0);
        }
        let each = (LIVE.load(Relaxed) - before) / CONNECTION_COUNT;
        println!("{versions:?}: {each} octets for each of {CONNECTION_COUNT} idle links");
        assert!(each <= OCTETS_MAX, "{versions:?}: {each} octets");
        assert!(each >= 1000, "{versions:?}: {each} octets cannot be true");
        drop(links);

        echo_without_allocation(&server, &client);
    }
}

fn client_options(versions: TlsVersions) -> TlsClientOptions {
    TlsClientOptions {
        server_name: "localhost".to_owned(),
        ca: None,
        insecure: true,
        client_cert: None,
        versions,
        resume: false,
    }
}

/// Both ends after a handshake, a message whole and one cut by a receive, each way.
fn used(server: &TlsServer, client: &TlsClient) -> (TlsLink, TlsLink) {
    let mut to_server = Vec::new();
    let (mut server, mut client) = (server.link(), client.link(&mut to_server).unwrap());
    let mut to_client = Vec::new();
    while !to_server.is_empty() || !to_client.is_empty() {
        hear(&mut server, &mut std::mem::take(&mut to_server), &mut to_client);
        hear(&mut client, &mut std::mem::take(&mut to_client), &mut to_server);
    }
    for len in [20, 5000] {
        client.seal(&[&[7; 5000][..len]], &mut to_server).unwrap();
        let mut tail = to_server.split_off(len / 2);
        let heard = hear(&mut server, &mut to_server, &mut to_client);
        let heard = heard + hear(&mut server, &mut tail, &mut to_client);
        assert_eq!((heard, server.held_octets()), (len, 0));
        to_server.clear();
        server.seal(&[&[8; 5000][..len]], &mut to_client).unwrap();
        assert_eq!(hear(&mut client, &mut to_client, &mut to_server), len);
        to_client.clear();
    }
    (server, client)
}

/// What a link takes whose client has sent its first message and no more.
fn half_a_handshake(server: &TlsServer, client: &TlsClient) {
    let mut hello = Vec::new();
    drop(client.link(&mut hello).unwrap());
    let mut out = Vec::with_capacity(8 << 10);
    let before = LIVE.load(Relaxed);
    let mut links = Vec::with_capacity(CONNECTION_COUNT);
    for _ in 0..CONNECTION_COUNT {
        let mut link = server.link();
        hear(&mut link, &mut hello.clone(), &mut out);
        out.clear();
        links.push(link);
    }
    let each = (LIVE.load(Relaxed) - before) / CONNECTION_COUNT;
    println!("{each} octets for each handshake in progress");
    assert!((1000..=HANDSHAKE_OCTETS_MAX).contains(&each), "{each} octets");
}

/// How many octets of plaintext.
fn hear(link: &mut TlsLink, octets: &mut [u8], out: &mut Vec<u8>) -> usize {
    let (mut at, mut heard) = (0, 0);
    loop {
        match link.open(octets, &mut at, out).unwrap() {
            Opened::Plaintext { plaintext, .. } | Opened::Kept { plaintext, .. } => heard += plaintext.len(),
            Opened::Handshaken(_) => {}
            Opened::PeerClosed => panic!("nobody closed"),
            Opened::Drained => return heard,
        }
    }
}

fn echo_without_allocation(server: &TlsServer, client: &TlsClient) {
    let (mut server, mut client) = used(server, client);
    let message = [7; 40_000];
    for (len, count) in [(20, 1), (20, 16), (1024, 16), (16_384, 3), (40_000, 1)] {
        let (mut octets, mut out, mut unasked) = (Vec::new(), Vec::with_capacity(100_000), Vec::new());
        for _ in 0..count {
            client.seal(&[&message[..len]], &mut octets).unwrap();
        }
        let before = CALLS.load(Relaxed);
        let (mut at, mut echoed) = (0, 0);
        while let Opened::Plaintext { plaintext, room } =
            server.open(&mut octets, &mut at, &mut unasked).unwrap()
        {
            echoed += plaintext.len();
            // Both ways to send, in turn.
            if echoed % 3 == 0 {
                server.seal(&[&octets[plaintext]], &mut out).unwrap();
            } else {
                let range = server.seal_in_place(&mut octets, plaintext, room).expect("an echo has room");
                out.extend_from_slice(&octets[range]);
            }
        }
        let calls = CALLS.load(Relaxed) - before;
        assert_eq!((echoed, calls), (len * count, 0), "{count} of {len}");
        assert_eq!(hear(&mut client, &mut out, &mut unasked), len * count);
    }
}
