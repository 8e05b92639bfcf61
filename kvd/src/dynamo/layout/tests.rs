//! The layout and its changes, by example and by property.

use super::bytes::{MAGIC, VERSION, VERSION_PLAIN};
use super::samples::{keyspace, layout, members};
use super::*;
use proptest::prelude::*;

fn three() -> Layout {
    layout(&[1, 2, 3], 3)
}

fn genesis(members: Vec<Member>) -> Result<Layout, LayoutError> {
    Layout::genesis("test", members, keyspace(DEFAULT_KEYSPACE, 3))
}

fn with_default(change: impl FnOnce(&mut Keyspace)) -> String {
    let mut default = keyspace(DEFAULT_KEYSPACE, 3);
    change(&mut default);
    let refused = Layout::genesis("test", members(&[1; 3], 1, 0), default);
    refused.unwrap_err().to_string()
}

fn with_first(change: impl FnOnce(&mut Member)) -> String {
    let mut members = members(&[1; 3], 1, 0);
    change(&mut members[0]);
    genesis(members).unwrap_err().to_string()
}

/// As it was before layouts said how zones are spread over.
fn as_of_old(layout: Layout) -> Layout {
    Layout { spread: SPREAD_OLD, ..layout }.seal().unwrap()
}

fn merged(a: &Layout, b: &Layout) -> Layout {
    Layout::merge(&[a, b]).unwrap()
}

#[test]
fn the_first_layout_is_whole() {
    let layout = three();
    assert_eq!((layout.depth(), layout.parents()), (1, &[][..]));
    assert_eq!(layout.keyspace("default").unwrap().stamp, 1);
    assert_eq!(layout.copies(3), [256; 3]);
    assert!(layout.fair_ratio(3).iter().all(|fair| fair.load_ppm(256) == 1_000_000));
    for (slot, member) in layout.members().iter().enumerate() {
        assert_eq!(layout.member(member.uid), Some(member));
        assert_eq!(layout.member_named(&member.name), Some(member));
        assert_eq!(layout.slot(member.uid), Some(slot as u16));
    }
    let partition = layout.partition_of(Token(u128::MAX));
    assert_eq!((partition, layout.replicas(3, partition).count()), (255, 3));
}

#[test]
fn the_order_in_which_members_are_given_does_not_matter() {
    let mut members = members(&[1, 2, 3, 4], 2, 0);
    let layout = genesis(members.clone()).unwrap();
    members.reverse();
    assert_eq!(genesis(members).unwrap().id(), layout.id());
}

#[test]
fn a_refusal_says_what_is_allowed() {
    assert_eq!(with_default(|k| k.w = 4), "W=4 is above N=3 in keyspace default");
    assert_eq!(with_default(|k| k.r = 4), "R=4 is above N=3 in keyspace default");
    assert_eq!(with_default(|k| k.r = 0), "R=0 of keyspace default is not within 1 and N=3");
    assert_eq!(with_default(|k| k.w = 0), "W=0 of keyspace default is not within 1 and N=3");
    assert_eq!(with_default(|k| k.n = 8), "N=8 of keyspace default is not within 1 and 7");
    let needs = "N=4 of keyspace default needs 4 nodes, there are 3";
    assert_eq!(with_default(|k| k.n = 4), needs);
    let limit = "value limit 0 bytes of keyspace default is not within 1 and 8388608";
    assert_eq!(with_default(|k| k.value_bytes_max = 0), limit);
    assert_eq!(with_default(|k| k.name = "x".into()), "the keyspace `default` is missing");
    let name = "keyspace name `a b` is not allowed: 1 to 64 of A-Z a-z 0-9 . _ -";
    assert_eq!(with_default(|k| k.name = "a b".into()), name);
    assert_eq!(with_first(|m| m.weight = 0), {
        let name = &members(&[1; 3], 1, 0)[0].name;
        format!("weight 0 of node {name} is not within 1 and 1000000")
    });
    assert_eq!(genesis(Vec::new()).unwrap_err(), LayoutError::NoMembers);
    let many = genesis(members(&vec![1; MEMBERS_MAX + 1], 1, 0)).unwrap_err();
    assert_eq!(many.to_string(), "4097 members are above the 4096 allowed");
}

#[test]
fn members_are_told_apart_by_uid_name_and_address() {
    let all = members(&[1; 3], 1, 0);
    let last = all[2].clone();
    let same_uid = with_first(|member| member.uid = last.uid);
    assert_eq!(same_uid, format!("two members have the uid {}", last.uid));
    let same_name = with_first(|member| member.name = last.name.clone());
    assert_eq!(same_name, format!("two members have the name {}", last.name));
    let same_address = with_first(|member| member.address = last.address.clone());
    assert_eq!(same_address, format!("two members have the address {}", last.address));
}

#[test]
fn an_address_is_a_host_and_a_port() {
    for address in ["a:1", "node-1.example:7400", "10.0.0.1:65535", "[::1]:7400"] {
        assert!(is_address(address), "{address}");
    }
    let long = format!("{}:7400", "a".repeat(251));
    let bad = ["", "a", ":1", "a:", "a:0", "a:+1", "a:65536", "a b:1", "::1:7400", "[]:1", "é:1"];
    for address in bad.into_iter().chain([long.as_str()]) {
        assert!(!is_address(address), "{address}");
    }
}

#[test]
fn a_keyspace_more_is_a_child() {
    let first = three();
    let child = first.with_keyspace(keyspace("logs", 2)).unwrap();
    assert_eq!((child.depth(), child.parents()), (2, &[first.id()][..]));
    assert_eq!(child.keyspace("logs").unwrap().stamp, 2);
    assert_eq!(child.tables().keys().collect::<Vec<_>>(), [&2, &3]);
    assert_eq!(child.row(3, 7), first.row(3, 7));
    assert_ne!(child.id(), first.id());
    let again = child.with_keyspace(keyspace("logs", 1)).unwrap_err();
    assert_eq!(again, LayoutError::KeyspaceExists { name: "logs".into() });
}

#[test]
fn an_operator_stops_at_the_bound_of_keyspaces_but_a_join_does_not() {
    let fill = |side: &str| {
        let mut layout = three();
        for i in 1..KEYSPACES_MAX {
            layout = layout.with_keyspace(keyspace(&format!("{side}{i}"), 3)).unwrap();
        }
        layout
    };
    let (left, right) = (fill("left"), fill("right"));
    let full = left.with_keyspace(keyspace("more", 3)).unwrap_err();
    assert_eq!(full.to_string(), "257 keyspaces are above the 256 allowed");
    let both = merged(&left, &right);
    assert_eq!(both.keyspaces().len(), 2 * KEYSPACES_MAX - 1);
    assert_eq!(Layout::decode(&both.encode()).unwrap(), both);
}

#[test]
fn damage_is_refused_with_its_reason() {
    let bytes = as_of_old(three()).encode();
    let error = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        Layout::decode(&bytes).unwrap_err()
    };
    assert_eq!(error(&|b| b[0] = b'X'), LayoutError::Magic);
    assert_eq!(error(&|b| b[4] = 5), LayoutError::Version { found: 5 });
    assert_eq!(error(&|b| b[4] = 0), LayoutError::Version { found: 0 });
    assert_eq!(error(&|b| b.push(0)), LayoutError::Trailing { bytes: 1 });
    assert!(matches!(error(&|b| b.truncate(b.len() - 1)), LayoutError::Short { .. }));
    let depth_zero = LayoutError::Depth { depth: 0, parents: 0 };
    assert_eq!(error(&|b| b[13] = 0), depth_zero);
    let bits = 4 + 1 + 1 + 8 + 1 + "test".len();
    assert_eq!(error(&|b| b[bits] = 7), LayoutError::PartitionBits { found: 7 });
    assert_eq!(error(&|b| b[bits] = 21), LayoutError::PartitionBits { found: 21 });
    assert_eq!(error(&|b| b[bits + 1..][..2].fill(0)), LayoutError::NoMembers);
    let crowd = error(&|b| b[bits + 1..][..2].fill(0xff));
    assert_eq!(crowd, LayoutError::TooManyMembers { found: 65535 });
    let twice = error(&|b| {
        let end = b.len();
        b.copy_within(end - 2..end, end - 4);
    });
    assert!(matches!(twice, LayoutError::Row { n: 3, partition: 255, .. }), "{twice}");
    let nobody = error(&|b| *b.last_mut().unwrap() = 3);
    assert!(matches!(nobody, LayoutError::Row { .. }), "{nobody}");
}

fn compressing(keyspace: Keyspace, number: usize) -> Keyspace {
    let compression = [None, Some(Codec::Lz4), Some(Codec::Zstd)][number % 3];
    Keyspace { compression, ..keyspace }
}

#[test]
fn only_what_needs_it_is_of_a_newer_version() {
    let newest = three().with_keyspace(keyspace("k", 1)).unwrap();
    assert_eq!(newest.encode()[4], 3, "it says how zones are spread over");
    let plain = as_of_old(newest);
    assert_eq!(plain.encode()[4], 1);
    assert_eq!(Layout::decode(&plain.encode()).unwrap(), plain);
    let lz4 = three().with_keyspace(compressing(keyspace("k", 1), 1)).unwrap();
    let lz4 = as_of_old(lz4);
    let mut bytes = lz4.encode();
    assert_eq!(bytes[4], 2);
    // The bytes of `k` in the list: name, N, R, W, mode, compression.
    let k = bytes.windows(6).position(|bytes| bytes == b"\x01k\x01\x01\x01\x00").unwrap();
    bytes[k + 6] = 3;
    let unknown = LayoutError::Compression { keyspace: "k".into(), found: 3 };
    assert_eq!(Layout::decode(&bytes), Err(unknown));
    bytes[k + 6] = 0;
    assert_eq!(Layout::decode(&bytes), Err(LayoutError::NeedlessVersion { found: 2 }));
}

#[test]
fn every_flipped_bit_is_refused_or_makes_another_id() {
    let layout = three().with_keyspace(keyspace("k", 1)).unwrap();
    let layout = layout.with_keyspace(compressing(keyspace("z", 1), 2)).unwrap();
    let mut bytes = layout.encode();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = Layout::decode(&bytes) {
            assert_ne!(other.id(), layout.id(), "bit {bit}");
            assert_eq!(other.encode(), bytes, "bit {bit}");
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(
        weights in prop::collection::vec(1u32..=WEIGHT_MAX, 5..20),
        zones in 1usize..6,
        copies in prop::collection::vec(1u8..=5, 0..4),
    ) {
        let mut layout = layout(&weights, zones);
        for (i, &n) in copies.iter().enumerate() {
            let mut keyspace = compressing(keyspace(&format!("k{i}"), n), i + usize::from(n));
            if i % 2 == 0 {
                keyspace.mode = Mode::Strict;
            }
            layout = layout.with_keyspace(keyspace).unwrap();
        }
        let decoded = Layout::decode(&layout.encode()).unwrap();
        prop_assert_eq!(decoded.id(), layout.id());
        prop_assert_eq!(decoded, layout);
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Layout::decode(&bytes).is_err());
        for version in [VERSION_PLAIN, VERSION] {
            let headed = [&MAGIC[..], &[version, 0], &1u64.to_be_bytes(), &bytes].concat();
            prop_assert!(Layout::decode(&headed).is_err());
        }
    }

    #[test]
    fn damage_never_panics(
        spots in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let whole = three().with_keyspace(compressing(keyspace("k", 1), 1)).unwrap().encode();
        let mut bytes = whole.clone();
        for (spot, byte) in spots {
            *spot.get_mut(&mut bytes) = byte;
        }
        if let Ok(layout) = Layout::decode(&bytes) {
            prop_assert_eq!(layout.encode(), bytes.clone());
        }
        prop_assert!(Layout::decode(&whole[..cut.index(whole.len())]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_delta_tells_any_layout_to_who_has_another(
        nodes in 3..40_usize,
        change in 0..4_u8,
        at in 0..40_usize,
        is_back in any::<bool>(),
    ) {
        let base = layout(&vec![1; nodes], 3);
        let of_it = base.members()[at % nodes].clone();
        let child = match change {
            0 => Change::Add(Member { uid: Uid(at as u128), name: "new".into(), address: "new:1".into(), ..of_it }),
            1 if nodes > 3 => Change::Remove { uid: of_it.uid, lost: false },
            2 => Change::Set(Member { zone: "elsewhere".into(), ..of_it }),
            _ => Change::Set(Member { weight: 5, ..of_it }),
        };
        let child = base.changed(&[child], b"a note".to_vec(), None).unwrap();
        let (from, to) = if is_back { (&child, &base) } else { (&base, &child) };
        let delta = to.delta(from);
        prop_assert_eq!(&Layout::from_delta(from, &delta).unwrap(), to);
        for cut in 0..delta.len().min(64) {
            prop_assert!(Layout::from_delta(from, &delta[..cut]).is_err());
        }
    }
}

#[test]
fn a_node_more_is_told_in_a_fraction_of_the_layout() {
    let base = layout(&vec![1; 200], 5);
    let new = members(&vec![1; 201], 5, 0).pop().unwrap();
    let new = Member { uid: Uid(7), name: "new".into(), address: "new:1".into(), ..new };
    let child = base.changed(&[Change::Add(new)], Vec::new(), None).unwrap();
    let (whole, delta) = (child.encode().len(), child.delta(&base).len());
    assert!(delta < whole / 20, "{delta} of {whole} bytes");
}

#[test]
fn a_keyspace_made_anew_is_another() {
    let with = |layout: &Layout| layout.with_keyspace(keyspace("logs", 2)).unwrap();
    let without = |layout: &Layout| {
        let id = layout.keyspace("logs").unwrap().id();
        layout.changed(&[Change::DropKeyspace(id)], Vec::new(), None).unwrap()
    };
    let first = with(&three());
    let second = with(&without(&first));
    let third = with(&without(&second));
    let id = |layout: &Layout| layout.keyspace("logs").unwrap().id();
    assert_eq!(BTreeSet::from([id(&first), id(&second), id(&third)]).len(), 3);
    assert_eq!(third.dropped().collect::<BTreeSet<_>>(), [id(&first), id(&second)].into());
    assert_eq!(Layout::decode(&third.encode()).unwrap(), third);
    // A side that did not hear of it goes on with the old one.
    let tuned = Keyspace { r: 2, ..first.keyspace("logs").unwrap().clone() };
    let mut beside = first.clone();
    for r in [1, 2, 1, 2] {
        let tuned = Change::SetKeyspace(Keyspace { r, ..tuned.clone() });
        beside = beside.changed(&[tuned], Vec::new(), None).unwrap();
    }
    let one = merged(&beside, &second);
    assert_eq!(id(&one), id(&second));
    assert_eq!((one.keyspaces().len(), one.dropped().collect::<Vec<_>>()), (2, vec![id(&first)]));
    assert_eq!(one, merged(&second, &beside));
}

#[test]
fn an_empty_place_stays_empty_in_other_slots() {
    let layout = three();
    let two = &layout.members()[..2];
    let without = layout.tables()[&3].relabelled(layout.members(), two);
    assert!(without.row(0).contains(&EMPTY));
    assert_eq!(without.relabelled(two, two), without);
}

#[test]
fn a_keyspace_that_goes_cannot_be_changed_too() {
    let layout = three().with_keyspace(keyspace("logs", 2)).unwrap();
    let logs = layout.keyspace("logs").unwrap().clone();
    let changes = [Change::DropKeyspace(logs.id()), Change::SetKeyspace(logs)];
    let refused = layout.changed(&changes, Vec::new(), None).unwrap_err();
    assert_eq!(refused, LayoutError::NoSuchKeyspace { name: "logs".into() });
}
