//! Every way in which the files can be wrong: one line that names the file and the cause.

use super::*;

/// The message, with the folder taken out.
fn message(folder: &Folder, error: &TlsSetupError) -> String {
    let message = error.to_string().replace(&format!("{}/", folder.0.display()), "");
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

#[test]
fn a_wrong_file_is_named_with_its_cause() {
    let (folder, ca) = (Folder::new(), Ca::new());
    let (certificate, key) = folder.identity("good", &ca, &["localhost"]);
    let (_, other_key) = folder.identity("other", &ca, &["localhost"]);
    let missing = folder.0.join("missing.pem");
    let text = folder.file("text.pem", "Not PEM at all.\n");
    let der = folder.0.join("der.pem");
    fs::write(&der, [0x30, 0x82, 0x01, 0x0a, 0xff]).unwrap();
    let cut = folder.file("cut.pem", &fs::read_to_string(&certificate).unwrap()[..200]);
    let cut_key = folder.file("cut.key", &fs::read_to_string(&key).unwrap()[..100]);
    let broken = folder.file("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let broken_key =
        folder.file("broken.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let encrypted = folder.file(
        "encrypted.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    for (certificate, key, expected) in [
        (&missing, &key, "missing.pem: No such file or directory"),
        (&certificate, &missing, "missing.pem: No such file or directory"),
        (&folder.0, &key, ": Is a directory"),
        (&text, &key, "text.pem: this is not PEM"),
        (&der, &key, "der.pem: this is not PEM"),
        (&certificate, &text, "text.pem: this is not PEM"),
        (&key, &key, "good.key: no certificate in it"),
        (&certificate, &certificate, "good.pem: no private key in it"),
        (&cut, &key, "cut.pem: broken PEM: "),
        (&certificate, &cut_key, "cut.key: broken PEM: "),
        (&broken, &key, "broken.pem: this certificate cannot be used: "),
        (&certificate, &broken_key, "broken.key: this private key cannot be used: "),
        (&certificate, &encrypted, "encrypted.key: the private key is encrypted"),
        (
            &certificate,
            &other_key,
            "other.key: this private key does not belong to the certificate in good.pem",
        ),
    ] {
        let certs = vec![(certificate.clone(), key.clone())];
        let error = TlsServer::new(TlsOptions { certs, ..Default::default() }).unwrap_err();
        let message = message(&folder, &error);
        assert!(message.contains(expected), "{message:?} is not about {expected:?}");
        // The client reads its own with the same words.
        let client_cert = Some((certificate.clone(), key.clone()));
        let options = TlsClientOptions { client_cert, insecure: true, ..client_options(None) };
        assert_eq!(TlsClient::new(&options).unwrap_err().to_string(), error.to_string());
    }
    for (ca, expected) in [(&missing, "No such file"), (&text, "not PEM"), (&key, "no certificate in it")] {
        let certs = vec![(certificate.clone(), key.clone())];
        let options = TlsOptions { certs, client_ca: Some(ca.clone()), self_signed: None };
        let server = message(&folder, &TlsServer::new(options).unwrap_err());
        let client = message(&folder, &TlsClient::new(&client_options(Some(ca.clone()))).unwrap_err());
        assert!(server.contains(expected) && server == client, "{server:?}, {client:?}");
    }
}

#[test]
fn a_server_with_nothing_to_show_does_not_start() {
    let error = TlsServer::new(TlsOptions::default()).unwrap_err();
    assert!(matches!(error.kind, TlsSetupErrorKind::NothingToShow), "{error}");
    let names = vec!["not a name".to_owned()];
    let options = TlsOptions { self_signed: Some(SelfSigned { names }), ..Default::default() };
    let error = TlsServer::new(options).unwrap_err();
    assert_eq!(error.to_string(), r#""not a name" is neither a host name nor an IP address"#);
}

#[test]
fn a_reload_that_fails_keeps_what_was() {
    let world = World::new();
    for broken in ["", "-----BEGIN CERTIFICATE-----\n"] {
        let file = world.folder.file("server.pem", broken);
        let error = world.server.reload().unwrap_err();
        assert_eq!(error.file, Some(file));
        assert_eq!(error.to_string().lines().count(), 1);
        assert!(Pair::new(&world.server, &world.client(TlsVersions::Both)).shake().is_ok());
    }
}

#[test]
fn a_chain_and_a_key_may_share_a_file() {
    let (folder, ca) = (Folder::new(), Ca::new());
    let [certificate, key] = ca.sign(&["localhost"], |_| {});
    let both = folder.file("both.pem", &format!("# a comment\n{key}\n{certificate}{}", ca.pem));
    let options = TlsOptions { certs: vec![(both.clone(), both)], ..Default::default() };
    let (server, _) = TlsServer::new(options).unwrap();
    let client = TlsClient::new(&client_options(Some(folder.file("ca.pem", &ca.pem)))).unwrap();
    assert!(Pair::new(&server, &client).shake().is_ok());
}

#[test]
fn every_error_has_its_words_and_each_that_a_user_can_mend_its_cure() {
    use TlsErrorKind::*;
    let mendable = [
        PlainHttp,
        NotTls,
        Version,
        NothingInCommon,
        UnknownIssuer,
        NameMismatch,
        Expired,
        NotYetValid,
        CertificateRequired,
        CertificateRefused,
    ];
    let others = [
        BadCertificate,
        EndedInHandshake,
        Truncated,
        TooLong,
        BadRecord,
        Alert(80),
        Misbehaved,
        KeysExhausted,
        NotOpen,
        Internal,
    ];
    let words: std::collections::BTreeSet<String> =
        mendable.iter().chain(&others).map(TlsErrorKind::to_string).collect();
    assert_eq!(words.len(), mendable.len() + others.len(), "two kinds have the same words");
    assert!(mendable.iter().all(|kind| kind.cure().is_some_and(|cure| cure.lines().count() == 1)));
    assert!(others.iter().all(|kind| kind.cure().is_none()));
}
