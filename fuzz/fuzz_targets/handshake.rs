//! Both sides of the opening handshake are fed any octets, whole and octet by octet.

#![no_main]

use libfuzzer_sys::fuzz_target;
use resound::proto::handshake::{HandshakeLimits, HeadScanner, Request, Response, UpgradePolicy};

const LIMITS: HandshakeLimits =
    HandshakeLimits { start_line_bytes_max: 200, head_bytes_max: 1000, header_count_max: 16 };

const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT"; // RFC 9110 §5.6.7

fuzz_target!(|data: &[u8]| {
    let policy =
        UpgradePolicy::new(&["https://good.example".to_owned()], &["chat".to_owned()]).expect("a policy");
    let outcome = |request: Request<'_>, len: usize| {
        let mut answer = Vec::new();
        if request.wants_upgrade() {
            match request.upgrade(&policy) {
                Ok(accepted) => accepted.write(&mut answer),
                Err(rejection) => rejection.write(DATE, &mut answer),
            }
        } else {
            resound::server::http::answer(&request, false, DATE, &mut answer);
        }
        assert!(answer.starts_with(b"HTTP/1.1 "));
        (len, answer)
    };
    let whole = Request::parse(data, &mut HeadScanner::default(), &LIMITS)
        .map(|head| head.map(|(request, len)| outcome(request, len)));
    let mut scanner = HeadScanner::default();
    let cut = (0..=data.len())
        .map(|end| {
            Request::parse(&data[..end], &mut scanner, &LIMITS)
                .map(|head| head.map(|(request, len)| outcome(request, len)))
        })
        .find(|result| !matches!(result, Ok(None)))
        .unwrap_or(Ok(None));
    assert_eq!(whole, cut);
    let _ = Response::parse(data, &mut HeadScanner::default(), &LIMITS);
});
