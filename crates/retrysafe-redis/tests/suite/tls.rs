//! `rediss://`: with certificates that are trusted, and not without.

use std::{fs, net::TcpListener, path::Path, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use redis::{Client, TlsCertificates};
use retrysafe_core::{Begin, Found, Store as _};
use retrysafe_redis::{OpenErrorKind, RedisStore};
use retrysafe_testkit::servers::RedisServer;

use crate::{SOON, acquire, claim, operation, patient};

/// An authority of the test's own, and what it vouches for.
struct Authority {
    certificate: String,
    directory: std::path::PathBuf,
}

impl Authority {
    fn new(directory: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let server_key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        let server = server.signed_by(&server_key, &issuer).unwrap();
        fs::write(directory.join("ca.pem"), authority.pem()).unwrap();
        fs::write(directory.join("server.pem"), server.pem()).unwrap();
        fs::write(directory.join("server.key"), server_key.serialize_pem()).unwrap();
        Self { certificate: authority.pem(), directory: directory.to_owned() }
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

#[tokio::test]
async fn a_certificate_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let server = RedisServer::with(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &authority.file("server.pem"),
        "--tls-key-file",
        &authority.file("server.key"),
        "--tls-ca-cert-file",
        &authority.file("ca.pem"),
        "--tls-auth-clients",
        "no",
    ])
    .await;
    let url = format!("rediss://localhost:{port}");
    let trusted = TlsCertificates {
        client_tls: None,
        root_cert: Some(authority.certificate.clone().into_bytes()),
    };
    let client = Client::build_with_tls(&*url, trusted).unwrap();
    let store = RedisStore::with_client(&client).response_timeout(SOON).open().await.unwrap();
    let owned = claim(operation());
    acquire(&store, &owned).await;
    let begun = store.begin(&claim(owned.id)).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::InFlight { .. })));

    // The system does not know this authority.
    let error = patient(url).open().await.unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::Tls, "{error}");
    // No TLS is spoken there.
    let plain = format!("rediss://localhost:{}", server.addr().port());
    let hasty = patient(plain).connection_timeout(Duration::from_millis(300));
    let error = hasty.open().await.unwrap_err();
    assert!(matches!(error.kind(), OpenErrorKind::Tls | OpenErrorKind::Unreachable), "{error}");
    let line = error.to_string();
    assert!(line.contains("TLS") && line.contains("is redis://"), "{line}");
}
