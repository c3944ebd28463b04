//! The rules of RFC 7692 §7.1, one by one, for both sides.

use super::*;
use proptest::prelude::*;

const TAKEOVER: DeflatePolicy = DeflatePolicy {
    server_no_context_takeover: false,
    client_no_context_takeover: false,
    window_bits_max: 15,
};
const NO_TAKEOVER: DeflatePolicy =
    DeflatePolicy { server_no_context_takeover: true, client_no_context_takeover: true, window_bits_max: 15 };

fn answer(policy: &DeflatePolicy, offers: &str) -> Option<String> {
    policy.answer(extensions(offers.as_bytes()).map(Result::unwrap)).map(|params| params.to_string())
}

/// What a server that has no wishes of its own makes of `params`.
fn plain(params: &str) -> Option<String> {
    answer(&TAKEOVER, &format!("permessage-deflate{params}"))
        .map(|answer| answer.strip_prefix("permessage-deflate").unwrap().to_owned())
}

#[test]
fn a_bare_offer_is_accepted_as_it_is() {
    assert_eq!(plain("").as_deref(), Some(""));
}

#[test]
fn what_is_asked_of_the_server_is_echoed() {
    assert_eq!(plain("; server_no_context_takeover").as_deref(), Some("; server_no_context_takeover"));
    assert_eq!(plain("; server_max_window_bits=10").as_deref(), Some("; server_max_window_bits=10"));
    assert_eq!(
        plain("; server_max_window_bits=9; server_no_context_takeover; client_no_context_takeover")
            .as_deref(),
        Some("; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=9")
    );
    assert_eq!(plain("; server_max_window_bits=15").as_deref(), Some("; server_max_window_bits=15"));
}

#[test]
fn a_quoted_value_counts_as_the_same_without_quotes() {
    assert_eq!(plain(r#"; server_max_window_bits="10""#).as_deref(), Some("; server_max_window_bits=10"));
    assert_eq!(plain(r#"; client_max_window_bits="\9""#).as_deref(), Some("; client_max_window_bits=9"));
    assert_eq!(plain(r#"; server_max_window_bits="16""#), None);
}

#[test]
fn a_clients_window_is_limited_only_if_it_says_that_it_can_be() {
    let small = DeflatePolicy { window_bits_max: 10, ..TAKEOVER };
    let answer = |params: &str| answer(&small, &format!("permessage-deflate{params}")).unwrap();
    assert_eq!(answer(""), "permessage-deflate; server_max_window_bits=10");
    for params in ["; client_max_window_bits", "; client_max_window_bits=15"] {
        let both = "permessage-deflate; server_max_window_bits=10; client_max_window_bits=10";
        assert_eq!(answer(params), both);
    }
    let nine = "permessage-deflate; server_max_window_bits=10; client_max_window_bits=9";
    assert_eq!(answer("; client_max_window_bits=9"), nine);
    assert_eq!(plain("; client_max_window_bits").as_deref(), Some(""));
}

#[test]
fn a_window_of_8_is_declined_for_us_and_read_from_them() {
    assert_eq!(plain("; server_max_window_bits=8"), None);
    assert_eq!(plain("; client_max_window_bits=8").as_deref(), Some("; client_max_window_bits=8"));
    let fallback = "permessage-deflate; server_max_window_bits=8, permessage-deflate";
    assert_eq!(answer(&TAKEOVER, fallback).as_deref(), Some("permessage-deflate"));
}

#[test]
fn values_out_of_range_missing_or_not_wanted_decline_the_offer() {
    for params in [
        "; server_max_window_bits",
        "; server_max_window_bits=7",
        "; server_max_window_bits=16",
        "; server_max_window_bits=010",
        "; server_max_window_bits=+10",
        "; server_max_window_bits=ten",
        "; server_max_window_bits=266",
        "; client_max_window_bits=0",
        "; client_max_window_bits=7",
        "; client_max_window_bits=16",
        "; client_max_window_bits=09",
        "; server_no_context_takeover=1",
        "; client_no_context_takeover=true",
    ] {
        assert_eq!(plain(params), None, "{params}");
    }
}

#[test]
fn unknown_and_repeated_parameters_decline_the_offer() {
    for params in [
        "; unknown",
        "; unknown=1",
        "; Server_No_Context_Takeover",
        "; server_no_context_takeover; server_no_context_takeover",
        "; client_no_context_takeover; client_no_context_takeover",
        "; server_max_window_bits=10; server_max_window_bits=10",
        "; client_max_window_bits; client_max_window_bits=10",
        "; client_max_window_bits=10; client_max_window_bits",
    ] {
        assert_eq!(plain(params), None, "{params}");
    }
}

#[test]
fn the_first_offer_that_can_be_met_wins() {
    let offers = "x-webkit-deflate-frame, permessage-deflate; unknown, \
                  permessage-deflate; server_max_window_bits=12, permessage-deflate";
    assert_eq!(answer(&TAKEOVER, offers).as_deref(), Some("permessage-deflate; server_max_window_bits=12"));
    assert_eq!(answer(&TAKEOVER, "permessage-bzip2, other"), None);
}

#[test]
fn a_server_may_insist_on_no_context_takeover() {
    let insisted = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    assert_eq!(answer(&NO_TAKEOVER, "permessage-deflate").as_deref(), Some(insisted));
    assert_eq!(answer(&NO_TAKEOVER, "permessage-deflate; client_max_window_bits").as_deref(), Some(insisted));
}

const OFFER: DeflateOffer = DeflateOffer {
    server_no_context_takeover: false,
    client_no_context_takeover: false,
    server_max_window_bits: None,
    client_max_window_bits: None,
};

#[test]
fn a_client_writes_what_it_asks_for() {
    assert_eq!(OFFER.to_string(), "permessage-deflate");
    let all = DeflateOffer {
        server_no_context_takeover: true,
        client_no_context_takeover: true,
        server_max_window_bits: Some(10),
        client_max_window_bits: Some(Some(9)),
    };
    assert_eq!(
        all.to_string(),
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover; \
         server_max_window_bits=10; client_max_window_bits=9"
    );
    let bare = DeflateOffer { client_max_window_bits: Some(None), ..OFFER };
    assert_eq!(bare.to_string(), "permessage-deflate; client_max_window_bits");
}

#[test]
fn a_client_fails_on_an_answer_that_was_not_offered() {
    use DeflateAnswerError::*;
    let fails = |offer: DeflateOffer, answer: &str| {
        offer.verify(&format!("permessage-deflate{answer}")).expect_err(answer)
    };
    let strict = DeflateOffer { server_no_context_takeover: true, ..OFFER };
    assert_eq!(fails(strict, ""), ServerContextTakeover);
    let small = DeflateOffer { server_max_window_bits: Some(10), ..OFFER };
    assert_eq!(fails(small, ""), ServerWindow);
    assert_eq!(fails(small, "; server_max_window_bits=11"), ServerWindow);
    assert_eq!(fails(DeflateOffer { server_max_window_bits: Some(15), ..OFFER }, ""), ServerWindow);
    assert_eq!(fails(OFFER, "; client_max_window_bits=10"), ClientWindowNotOffered);
    let limited = DeflateOffer { client_max_window_bits: Some(None), ..OFFER };
    assert_eq!(fails(limited, "; client_max_window_bits=8"), ClientWindowTooSmall);
    assert_eq!(fails(limited, "; client_max_window_bits"), Malformed);
    for malformed in
        ["; server_max_window_bits", "; x", "; server_max_window_bits=16", ", permessage-deflate"]
    {
        assert_eq!(fails(limited, malformed), Malformed, "{malformed}");
    }
}

#[test]
fn a_client_takes_what_a_server_may_add() {
    let params = OFFER
        .verify("permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=8")
        .unwrap()
        .unwrap();
    assert_eq!(
        params,
        DeflateParams {
            server_no_context_takeover: true,
            client_no_context_takeover: true,
            server_max_window_bits: Some(8),
            client_max_window_bits: None,
        }
    );
    assert_eq!(OFFER.verify("other"), Ok(None));
}

fn bits(from: u8) -> impl Strategy<Value = u8> {
    from..=15u8
}

proptest! {
    #[test]
    fn every_answer_of_ours_satisfies_the_client_that_offered(
        server_no_context_takeover: bool,
        client_no_context_takeover: bool,
        server_max_window_bits in prop::option::of(bits(8)),
        client_max_window_bits in prop::option::of(prop::option::of(bits(9))),
        policy in (any::<bool>(), any::<bool>(), bits(9)),
    ) {
        let offer = DeflateOffer {
            server_no_context_takeover, client_no_context_takeover, server_max_window_bits, client_max_window_bits,
        };
        let policy = DeflatePolicy {
            server_no_context_takeover: policy.0, client_no_context_takeover: policy.1, window_bits_max: policy.2,
        };
        let written = offer.to_string();
        let agreed = policy.answer(extensions(written.as_bytes()).map(Result::unwrap));
        prop_assert_eq!(agreed.is_none(), server_max_window_bits == Some(8));
        if let Some(agreed) = agreed {
            prop_assert_eq!(offer.verify(&agreed.to_string()), Ok(Some(agreed)));
        }
    }

    #[test]
    fn no_offer_makes_the_server_promise_what_it_cannot_do(offer in "permessage-deflate(; ?[a-z_]{0,30}(=\"?[0-9]{1,3}\"?)?){0,4}") {
        let offers = extensions(offer.as_bytes()).map_while(Result::ok);
        if let Some(params) = TAKEOVER.answer(offers) {
            prop_assert!((9..=15).contains(&params.server_window_bits()));
            prop_assert!((8..=15).contains(&params.client_window_bits()));
        }
    }
}
