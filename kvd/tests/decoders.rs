//! Whatever bytes arrive or lie on a disk: every decoder takes them or refuses them, and neither
//! panics nor asks for memory that the bytes cannot fill. Noise, and samples of the real formats that
//! were tampered with.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use foca::Codec;
use kvd::cluster::documents;
use kvd::cluster::value;
use kvd::dynamo::context::Sealer;
use kvd::dynamo::gossip::Packets;
use kvd::dynamo::history::Parts;
use kvd::dynamo::key::Key;
use kvd::dynamo::layout::Layout;
use kvd::dynamo::node::{ClusterId, KeyspaceId};
use kvd::dynamo::object::Object;
use kvd::storage::record;
use proptest::prelude::*;
use prost::Message;
use proto::tls::Facts;
use proto::v1;

/// Samples that are whole: those of `kvd/tests/formats`.
const SAMPLES: [&[u8]; 8] = [
    include_bytes!("formats/object-v1.bin"),
    include_bytes!("formats/object-v2.bin"),
    include_bytes!("formats/record-v1.bin"),
    include_bytes!("formats/context-v1.bin"),
    include_bytes!("formats/layout-v1.bin"),
    include_bytes!("formats/layout-v2.bin"),
    include_bytes!("formats/layout-v3.bin"),
    include_bytes!("formats/layout-v4.bin"),
];

/// Noise, or a sample with some bytes changed, cut off, or put twice.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let noise = prop::collection::vec(any::<u8>(), 0..600);
    let change = (any::<prop::sample::Index>(), any::<u8>());
    let tampered = (
        prop::sample::select(SAMPLES.to_vec()),
        prop::collection::vec(change, 0..6),
        prop::option::of(any::<prop::sample::Index>()),
        any::<bool>(),
    );
    let tampered = tampered.prop_map(|(sample, changes, cut, twice)| {
        let mut bytes = sample.to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if twice {
            bytes.extend(bytes.clone());
        }
        bytes
    });
    prop_oneof![noise, tampered]
}

/// What is left of the bytes if a message is made of them and shown to who decodes further.
fn every_decoder(bytes: &[u8]) {
    let shared = Bytes::copy_from_slice(bytes);
    let key = Key::new(KeyspaceId::of("default"), Bytes::from_static(b"k")).unwrap();

    if let Ok(object) = Object::decode(shared.clone()) {
        // What was taken can be written, and shown or refused.
        assert_eq!(Object::decode(object.encode().into()), Ok(object.clone()));
        for (_, record) in object.live() {
            let _ = record.value.as_ref().map(value::restore);
        }
    }
    let _ = record::decode(&record::stored_key(&key), shared.clone());
    let _ = record::parse_key(bytes);
    let sealer = Sealer::new(ClusterId(1), [7; 16]);
    let _ = sealer.open(&key, &shared);

    if let Ok(layout) = Layout::decode(bytes) {
        assert_eq!(Layout::decode(&layout.encode()).unwrap().id(), layout.id());
    }
    let base = Layout::decode(SAMPLES[7]).unwrap();
    let _ = Layout::from_delta(&base, bytes);
    for bits in [0, 8, 20, u32::MAX] {
        let _ = Parts::from_bytes(bits, bytes);
    }
    let _ = Packets.decode_header(bytes);
    let _ = Packets.decode_member(bytes);
    let _ = documents::note_of(bytes);
    let _ = documents::decode(bytes, |_| None);
    let history = v1::History { layouts: vec![shared.clone()], ..Default::default() };
    let _ = documents::heard(&history, |_| None);
    let delta =
        v1::LayoutDelta { base_id: base.id().to_bytes().to_vec().into(), delta: shared.clone() };
    let history = v1::History { deltas: vec![delta], ..Default::default() };
    let base = std::sync::Arc::new(base);
    let _ = documents::heard(&history, |_| Some(std::sync::Arc::clone(&base)));

    let _ = v1::LinkRequest::decode(bytes);
    let _ = v1::LinkReply::decode(bytes);
    let _ = v1::PutRequest::decode(bytes);
    let _ = v1::ApplyPlanRequest::decode(bytes);
    let status = tonic::Status::with_details(tonic::Code::Internal, "", shared);
    let _ = proto::error::detail(&status);
    let _ = Facts::of(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_are_too_much_for_any_decoder(bytes in hostile()) {
        every_decoder(&bytes);
    }
}
