//! The bytes of gossip: names of members, and packets of the protocol (SWIM, DSN'02) by which they
//! find out who is up. The protocol itself is `foca`'s.
//!
//! A packet is a header (who, to whom, what) and, after their number in two bytes, what its sender
//! has newly heard of members. All numbers are big-endian; a member takes 31 bytes.

use crate::dynamo::node::Uid;
use bytes::{Buf, BufMut};
use foca::{Codec, Header, Identity, Message, State};
use std::fmt;

/// A packet never has more bytes.
pub const PACKET_BYTES_MAX: usize = 1400;

const NAME_BYTES: usize = 16 + 8 + 4;
const MEMBER_BYTES: usize = NAME_BYTES + 2 + 1;

/// What gossip calls a member. Down is for ever, so one that comes back needs another name: its
/// start makes one, and if it was only cut off, the number of its return.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Name {
    /// The member.
    pub uid: Uid,
    /// How often it had been started; 0: known only from the layout.
    pub start: u64,
    /// How often it was declared down since, and was not.
    pub returned: u32,
}

impl Name {
    /// What a member is called until it is met. Any other name of it takes the place of this one.
    pub fn unmet(uid: Uid) -> Self {
        Self { uid, start: 0, returned: 0 }
    }
}

impl Identity for Name {
    type Addr = Uid;

    fn renew(&self) -> Option<Self> {
        Some(Self { returned: self.returned.checked_add(1)?, ..*self })
    }

    fn addr(&self) -> Uid {
        self.uid
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.start, self.returned) > (adversary.start, adversary.returned)
    }
}

/// Writes and reads packets.
#[derive(Clone, Copy, Debug)]
pub struct Packets;

/// A packet that is not one, or has no room for more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the packet of gossip is malformed, or too small for what it should hold")
    }
}

impl std::error::Error for Malformed {}

impl Codec<Name> for Packets {
    type Error = Malformed;

    fn encode_header(
        &mut self,
        header: &Header<Name>,
        mut buf: impl BufMut,
    ) -> Result<(), Malformed> {
        if buf.remaining_mut() < 2 * NAME_BYTES + 2 + 1 + NAME_BYTES + 1 {
            return Err(Malformed);
        }
        put_name(&mut buf, &header.src);
        buf.put_u16(header.src_incarnation);
        put_name(&mut buf, &header.dst);
        put_message(&mut buf, &header.message);
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Name>, Malformed> {
        Ok(Header {
            src: get_name(&mut buf)?,
            src_incarnation: buf.try_get_u16().map_err(|_| Malformed)?,
            dst: get_name(&mut buf)?,
            message: get_message(&mut buf)?,
        })
    }

    fn encode_member(
        &mut self,
        member: &foca::Member<Name>,
        mut buf: impl BufMut,
    ) -> Result<(), Malformed> {
        if buf.remaining_mut() < MEMBER_BYTES {
            return Err(Malformed);
        }
        put_name(&mut buf, member.id());
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<foca::Member<Name>, Malformed> {
        let name = get_name(&mut buf)?;
        let incarnation = buf.try_get_u16().map_err(|_| Malformed)?;
        let state = match buf.try_get_u8() {
            Ok(0) => State::Alive,
            Ok(1) => State::Suspect,
            Ok(2) => State::Down,
            _ => return Err(Malformed),
        };
        Ok(foca::Member::new(name, incarnation, state))
    }
}

fn put_name(buf: &mut impl BufMut, name: &Name) {
    buf.put_u128(name.uid.0);
    buf.put_u64(name.start);
    buf.put_u32(name.returned);
}

fn get_name(buf: &mut impl Buf) -> Result<Name, Malformed> {
    Ok(Name {
        uid: Uid(buf.try_get_u128().map_err(|_| Malformed)?),
        start: buf.try_get_u64().map_err(|_| Malformed)?,
        returned: buf.try_get_u32().map_err(|_| Malformed)?,
    })
}

fn put_message(buf: &mut impl BufMut, message: &Message<Name>) {
    let (kind, number, third) = match message {
        Message::Ping(number) => (0, Some(number), None),
        Message::Ack(number) => (1, Some(number), None),
        Message::PingReq { target, probe_number } => (2, Some(probe_number), Some(target)),
        Message::IndirectPing { origin, probe_number } => (3, Some(probe_number), Some(origin)),
        Message::IndirectAck { target, probe_number } => (4, Some(probe_number), Some(target)),
        Message::ForwardedAck { origin, probe_number } => (5, Some(probe_number), Some(origin)),
        Message::Announce => (6, None, None),
        Message::Feed => (7, None, None),
        Message::Gossip => (8, None, None),
        Message::Broadcast => (9, None, None),
        Message::TurnUndead => (10, None, None),
    };
    buf.put_u8(kind);
    if let Some(number) = number {
        buf.put_u8(*number);
    }
    if let Some(third) = third {
        put_name(buf, third);
    }
}

fn get_message(buf: &mut impl Buf) -> Result<Message<Name>, Malformed> {
    let kind = buf.try_get_u8().map_err(|_| Malformed)?;
    let mut number = || buf.try_get_u8().map_err(|_| Malformed);
    Ok(match kind {
        0 => Message::Ping(number()?),
        1 => Message::Ack(number()?),
        2 => Message::PingReq { probe_number: number()?, target: get_name(buf)? },
        3 => Message::IndirectPing { probe_number: number()?, origin: get_name(buf)? },
        4 => Message::IndirectAck { probe_number: number()?, target: get_name(buf)? },
        5 => Message::ForwardedAck { probe_number: number()?, origin: get_name(buf)? },
        6 => Message::Announce,
        7 => Message::Feed,
        8 => Message::Gossip,
        9 => Message::Broadcast,
        10 => Message::TurnUndead,
        _ => return Err(Malformed),
    })
}

/// A packet that `from` sent, without what it says of nodes that are no members. An error if it is
/// malformed, not from `from`, or about somebody who is no member.
pub fn admit(
    packet: &[u8],
    from: Uid,
    is_member: impl Fn(Uid) -> bool,
) -> Result<Vec<u8>, Malformed> {
    if packet.len() > PACKET_BYTES_MAX {
        return Err(Malformed);
    }
    let mut rest = packet;
    let header = Packets.decode_header(&mut rest)?;
    let third = match &header.message {
        Message::PingReq { target: third, .. }
        | Message::IndirectPing { origin: third, .. }
        | Message::IndirectAck { target: third, .. }
        | Message::ForwardedAck { origin: third, .. } => Some(third.uid),
        _ => None,
    };
    if header.src.uid != from || !third.is_none_or(&is_member) {
        return Err(Malformed);
    }
    let mut admitted = packet[..packet.len() - rest.len()].to_vec();
    if rest.is_empty() {
        return Ok(admitted);
    }
    let told = rest.try_get_u16().map_err(|_| Malformed)?;
    let mut members = Vec::new();
    for _ in 0..told {
        let member = Packets.decode_member(&mut rest)?;
        if is_member(member.id().uid) {
            members.push(member);
        }
    }
    if !rest.is_empty() {
        return Err(Malformed);
    }
    admitted.put_u16(members.len() as u16);
    members.iter().try_for_each(|member| Packets.encode_member(member, &mut admitted))?;
    Ok(admitted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use foca::Member;

    fn name(uid: u128) -> Name {
        Name { uid: Uid(uid), start: 7, returned: 1 }
    }

    fn packet(message: Message<Name>, members: &[Member<Name>]) -> Vec<u8> {
        let mut packet = Vec::new();
        let header = Header { src: name(1), src_incarnation: 3, dst: name(2), message };
        Packets.encode_header(&header, &mut packet).unwrap();
        packet.put_u16(members.len() as u16);
        members.iter().for_each(|member| Packets.encode_member(member, &mut packet).unwrap());
        packet
    }

    #[test]
    fn packets_come_back_as_they_were() {
        let (origin, target) = (name(3), name(3));
        let probe_number = 9;
        for message in [
            Message::Ping(200),
            Message::Ack(1),
            Message::PingReq { target, probe_number },
            Message::IndirectPing { origin, probe_number },
            Message::IndirectAck { target, probe_number },
            Message::ForwardedAck { origin, probe_number },
            Message::Announce,
            Message::Feed,
            Message::Gossip,
            Message::Broadcast,
            Message::TurnUndead,
        ] {
            let packet = packet(message.clone(), &[]);
            let header = Packets.decode_header(&packet[..]).unwrap();
            assert_eq!((header.src, header.dst, header.message), (name(1), name(2), message));
        }
        for state in [State::Alive, State::Suspect, State::Down] {
            let (member, mut bytes) = (Member::new(name(5), 70, state), Vec::new());
            Packets.encode_member(&member, &mut bytes).unwrap();
            assert_eq!(bytes.len(), MEMBER_BYTES);
            assert_eq!(Packets.decode_member(&bytes[..]), Ok(member));
        }
    }

    #[test]
    fn what_is_said_of_strangers_is_left_out() {
        let members = [Member::alive(name(2)), Member::alive(name(66)), Member::down(name(3))];
        let is_member = |uid: Uid| uid.0 < 10;
        let told = packet(Message::Gossip, &members);
        let kept = [members[0].clone(), members[2].clone()];
        assert_eq!(admit(&told, Uid(1), is_member), Ok(packet(Message::Gossip, &kept)));
        assert_eq!(admit(&told, Uid(2), is_member), Err(Malformed), "another sent it");
        let about = Message::PingReq { target: name(66), probe_number: 1 };
        assert_eq!(admit(&packet(about, &[]), Uid(1), is_member), Err(Malformed));
    }

    #[test]
    fn a_packet_cut_short_or_too_long_is_refused() {
        let whole = packet(Message::Gossip, &[Member::alive(name(2)), Member::down(name(3))]);
        let header = whole.len() - 2 - 2 * MEMBER_BYTES;
        for end in (0..whole.len()).filter(|end| *end != header) {
            assert_eq!(admit(&whole[..end], Uid(1), |_| true), Err(Malformed), "{end}");
        }
        let long = [whole.clone(), vec![0]].concat();
        assert_eq!(admit(&long, Uid(1), |_| true), Err(Malformed));
        assert_eq!(admit(&vec![0; PACKET_BYTES_MAX + 1], Uid(1), |_| true), Err(Malformed));
    }

    #[test]
    fn a_later_start_and_then_a_later_return_is_the_name_that_stays() {
        let before = name(1);
        let returned = before.renew().unwrap();
        let restarted = Name { start: 8, returned: 0, ..before };
        assert!(returned.win_addr_conflict(&before) && restarted.win_addr_conflict(&returned));
        assert!(before.win_addr_conflict(&Name::unmet(Uid(1))));
        assert!(!before.win_addr_conflict(&returned));
    }
}
