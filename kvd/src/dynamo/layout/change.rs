//! Children: what an operator changes, and what two sides of a split make together.

use super::*;

/// One thing that a child has otherwise than its parent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A node more.
    Add(Member),
    /// A node less. `lost`: it gives nothing away any more, and answers nobody.
    Remove {
        /// Who.
        uid: Uid,
        /// It is dead.
        lost: bool,
    },
    /// A node in the place of another: it holds what that one held.
    Replace {
        /// Who goes.
        uid: Uid,
        /// Who comes.
        with: Member,
        /// Who goes is dead.
        lost: bool,
    },
    /// A member with another name, address, zone or weight.
    Set(Member),
    /// A keyspace more.
    CreateKeyspace(Keyspace),
    /// A keyspace with other N, R, W, mode or limits.
    SetKeyspace(Keyspace),
    /// A keyspace less.
    DropKeyspace(KeyspaceId),
    /// How many zones the copies of a partition must touch.
    Spread(u8),
    /// Nothing but fair shares.
    Rebalance,
}

impl Layout {
    /// A child with these changes, in this order. Its tables are planned from the parent's, or from
    /// those of `base` if a caller has better ones: what is to be kept where fairness allows. Slots
    /// in those are positions among `base`'s members, which are in order of uid.
    ///
    /// # Errors
    /// What cannot be: too few nodes for an N, a name that is taken, a field that is not allowed.
    pub fn changed(
        &self,
        changes: &[Change],
        note: Vec<u8>,
        base: Option<(&[Member], &BTreeMap<u8, Table>)>,
    ) -> Result<Self, LayoutError> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(LayoutError::Note { found: note.len() });
        }
        let mut child = self.clone();
        (child.parents, child.note) = (vec![self.id], note);
        child.depth += 1;
        let (mut places, mut replans) = (BTreeMap::new(), base.is_some());
        for change in changes {
            replans |= child.change(change, &mut places)?;
        }
        child.members.sort_by_key(|member| member.uid);
        child.forget_oldest();
        let (from, base) = base.unwrap_or((&self.members, &self.tables));
        child.plan_from(from, base, &places, replans)?;
        child.seal()
    }

    /// Makes a change; says whether the tables have to be planned anew.
    fn change(
        &mut self,
        change: &Change,
        places: &mut BTreeMap<Uid, Uid>,
    ) -> Result<bool, LayoutError> {
        match change {
            Change::Add(member) => self.put_member(member.clone()),
            Change::Remove { uid, lost } => self.remove_member(*uid, *lost)?,
            Change::Replace { uid, with, lost } => {
                self.remove_member(*uid, *lost)?;
                self.put_member(with.clone());
                places.insert(*uid, with.uid);
            }
            Change::Set(member) => {
                let before = self.members.iter().find(|it| it.uid == member.uid);
                let before = before.ok_or(LayoutError::NoSuchMember { uid: member.uid })?;
                let replans = (before.weight, &before.zone) != (member.weight, &member.zone);
                self.put_member(member.clone());
                return Ok(replans);
            }
            Change::CreateKeyspace(keyspace) => {
                self.create_keyspace(keyspace.clone())?;
                return Ok(false);
            }
            Change::SetKeyspace(keyspace) => {
                let stamp = self.depth;
                if !self.keyspaces.contains_key(&keyspace.id()) {
                    return Err(LayoutError::NoSuchKeyspace { name: keyspace.name.clone() });
                }
                self.keyspaces.insert(keyspace.id(), Keyspace { stamp, ..keyspace.clone() });
                return Ok(false);
            }
            Change::DropKeyspace(id) => {
                if let Some(keyspace) = self.keyspaces.remove(id) {
                    self.dropped.insert(*id, Dropped::new(keyspace, self.depth));
                }
                return Ok(false);
            }
            Change::Spread(spread) => self.spread = (*spread, self.depth),
            Change::Rebalance => {}
        }
        Ok(true)
    }

    fn put_member(&mut self, member: Member) {
        let uid = member.uid;
        self.members.retain(|it| it.uid != uid);
        self.members.push(member);
        self.removed.remove(&uid);
        self.stamps.insert(uid, self.depth);
    }

    fn remove_member(&mut self, uid: Uid, lost: bool) -> Result<(), LayoutError> {
        let stamp = self.depth;
        if let Some(at) = self.members.iter().position(|it| it.uid == uid) {
            let member = self.members.remove(at);
            self.stamps.remove(&uid);
            self.removed.insert(uid, Removed { name: member.name, stamp, lost });
            return Ok(());
        }
        // It was to leave by itself, and died over it.
        match self.removed.get_mut(&uid) {
            Some(removed) if lost => (removed.stamp, removed.lost) = (stamp, true),
            _ => return Err(LayoutError::NoSuchMember { uid }),
        }
        Ok(())
    }

    fn create_keyspace(&mut self, keyspace: Keyspace) -> Result<(), LayoutError> {
        if self.keyspace(&keyspace.name).is_some() {
            return Err(LayoutError::KeyspaceExists { name: keyspace.name });
        }
        let before = self.dropped.values().filter(|it| it.name == keyspace.name);
        let generation = before.map(|it| it.generation.saturating_add(1)).max().unwrap_or(0);
        let keyspace = Keyspace { stamp: self.depth, generation, ..keyspace };
        if let Some(other) = self.keyspaces.get(&keyspace.id()) {
            let (name, other) = (keyspace.name, other.name.clone());
            return Err(LayoutError::KeyspaceIdClash { name, other });
        }
        let (found, allowed) = (self.keyspaces.len() + 1, KEYSPACES_MAX);
        if found > allowed {
            return Err(LayoutError::TooManyKeyspaces { found, allowed });
        }
        self.keyspaces.insert(keyspace.id(), keyspace);
        Ok(())
    }

    /// What was removed longest ago need not be remembered when there is too much of it.
    fn forget_oldest(&mut self) {
        while self.removed.len() > REMOVED_MAX {
            let oldest = self.removed.iter().min_by_key(|(uid, it)| (it.stamp, **uid));
            let oldest = *oldest.expect("it is not empty").0;
            self.removed.remove(&oldest);
        }
        while self.dropped.len() > KEYSPACES_JOINED_MAX {
            let oldest = self.dropped.iter().min_by_key(|(id, it)| (it.stamp, **id));
            let oldest = *oldest.expect("it is not empty").0;
            self.dropped.remove(&oldest);
        }
    }

    /// Plans a table for every N in use from `base`, whose slots are positions in `from`; `places`:
    /// who takes whose place. Without `replans`, only for an N that `base` has no table for.
    pub(super) fn plan_from(
        &mut self,
        from: &[Member],
        base: &BTreeMap<u8, Table>,
        places: &BTreeMap<Uid, Uid>,
        replans: bool,
    ) -> Result<(), LayoutError> {
        // First, since the planner is not asked about what cannot be.
        self.check_facts()?;
        let wanted = self.wanted_tables();
        let bits = base.values().map(|table| table.partitions().trailing_zeros()).max();
        let bits = bits.unwrap_or(self.partition_bits).max(self.partition_bits);
        let largest = wanted.last().copied().unwrap_or(1);
        self.partition_bits = match replans {
            true => plan::bits_wanted(self.members.len(), largest, bits),
            false => bits,
        };
        let mut tables = BTreeMap::new();
        for &n in &wanted {
            let near = |m: &&u8| (m.abs_diff(n), **m > n);
            let previous = base.keys().min_by_key(near).map(|near| &base[near]);
            let kept = base.contains_key(&n) && !replans;
            let previous = previous.map(|table| {
                let table = table.doubled_to(self.partition_bits);
                table.with_places(from, &self.members, places)
            });
            let table = match previous {
                Some(table) if kept => table,
                previous => plan::plan(
                    previous.as_ref(),
                    &self.members,
                    n,
                    self.partition_bits,
                    self.spread.0,
                )?,
            };
            tables.insert(n, table);
        }
        self.tables = tables;
        Ok(())
    }

    /// What these heads of one cluster make together: the same document, byte for byte, on every
    /// node that knows them. Of each node and keyspace the newer word counts: the greater stamp, on
    /// equal ones that something is gone, and then the greater bytes. The table is planned from that
    /// of the deepest.
    ///
    /// Nobody's wish is lost, but where wishes contradict each other one of them is. Are fewer
    /// nodes left than a keyspace has copies, it gets so many.
    ///
    /// # Errors
    /// Heads of different clusters, or together more than a layout may hold.
    pub fn merge(heads: &[&Self]) -> Result<Self, LayoutError> {
        let base = heads.iter().max_by_key(|head| (head.depth, head.id));
        let base = *base.expect("there is something to merge");
        if let Some(other) = heads.iter().find(|head| head.cluster_name != base.cluster_name) {
            let (ours, theirs) = (base.cluster_name.clone(), other.cluster_name.clone());
            return Err(LayoutError::ClusterDiffers { ours, theirs });
        }
        let mut child = base.clone();
        child.parents = heads.iter().map(|head| head.id).collect();
        child.parents.sort_unstable();
        child.depth += 1;
        child.note = Vec::new();
        child.spread = heads
            .iter()
            .map(|head| head.spread)
            .max_by_key(|(spread, at)| (*at, *spread))
            .expect("there are heads");
        child.partition_bits =
            heads.iter().map(|head| head.partition_bits).max().expect("as above");
        child.merge_members(heads);
        child.merge_keyspaces(heads);
        child.forget_oldest();
        child.plan_from(&base.members, &base.tables, &BTreeMap::new(), true)?;
        child.seal()
    }

    fn merge_members(&mut self, heads: &[&Self]) {
        /// What one head says of a node; the greatest counts.
        type Word = (u64, bool, Vec<u8>);
        let mut newest: BTreeMap<Uid, (Word, Result<Member, Removed>)> = BTreeMap::new();
        for head in heads {
            let there = head.members.iter().map(|member| {
                let word = (head.stamp_of(member.uid), false, member.to_bytes());
                (member.uid, (word, Ok(member.clone())))
            });
            let gone = head.removed.iter().map(|(uid, removed)| {
                let word = (removed.stamp, true, vec![removed.lost.into()]);
                (*uid, (word, Err(removed.clone())))
            });
            for (uid, said) in there.chain(gone) {
                match newest.get(&uid) {
                    Some(known) if known.0 >= said.0 => {}
                    _ => drop(newest.insert(uid, said)),
                }
            }
        }
        (self.members, self.stamps, self.removed) = Default::default();
        for (uid, ((stamp, ..), said)) in newest {
            match said {
                Ok(member) => {
                    self.members.push(member);
                    if stamp != STAMP_FIRST {
                        self.stamps.insert(uid, stamp);
                    }
                }
                Err(removed) => drop(self.removed.insert(uid, removed)),
            }
        }
        self.tell_members_apart();
    }

    /// Two sides may each have added a node of one name, or at one address. The older keeps it. A
    /// name can be made another; at one address there is one node, and the other is gone.
    fn tell_members_apart(&mut self) {
        let mut order: Vec<(u64, Uid)> =
            self.members.iter().map(|member| (self.stamp_of(member.uid), member.uid)).collect();
        order.sort_unstable();
        let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for (stamp, uid) in order {
            let at = self.members.iter().position(|member| member.uid == uid);
            let at = at.expect("only what was seen is removed");
            let member = &mut self.members[at];
            if !addresses.insert(member.address.clone()) {
                let member = self.members.remove(at);
                self.stamps.remove(&uid);
                self.removed.insert(uid, Removed { name: member.name, stamp, lost: true });
                continue;
            }
            if !names.insert(member.name.clone()) {
                member.name = uid.to_string(); // 32 hex digits, as no other
                names.insert(member.name.clone());
            }
        }
    }

    fn merge_keyspaces(&mut self, heads: &[&Self]) {
        type Word = (u64, bool, Vec<u8>);
        let mut newest: BTreeMap<KeyspaceId, (Word, Result<Keyspace, Dropped>)> = BTreeMap::new();
        for head in heads {
            let there = head.keyspaces.iter().map(|(id, keyspace)| {
                (*id, ((keyspace.stamp, false, keyspace.to_bytes()), Ok(keyspace.clone())))
            });
            let gone = head
                .dropped
                .iter()
                .map(|(id, it)| (*id, ((it.stamp, true, Vec::new()), Err(it.clone()))));
            for (id, said) in there.chain(gone) {
                match newest.get(&id) {
                    Some(known) if known.0 >= said.0 => {}
                    _ => drop(newest.insert(id, said)),
                }
            }
        }
        (self.keyspaces, self.dropped) = Default::default();
        let most = u8::try_from(self.members.len()).unwrap_or(N_MAX).max(1);
        for (id, (_, said)) in newest {
            match said {
                Ok(mut keyspace) => {
                    keyspace.n = keyspace.n.min(most);
                    keyspace.r = keyspace.r.min(keyspace.n);
                    keyspace.w = keyspace.w.min(keyspace.n);
                    self.keyspaces.insert(id, keyspace);
                }
                Err(dropped) => drop(self.dropped.insert(id, dropped)),
            }
        }
        self.tell_keyspaces_apart();
    }

    /// One side may have changed a keyspace that the other dropped and made anew. The name is that of
    /// the new one.
    fn tell_keyspaces_apart(&mut self) {
        let mut newest: BTreeMap<String, u32> = BTreeMap::new();
        for keyspace in self.keyspaces.values() {
            let newest = newest.entry(keyspace.name.clone()).or_default();
            *newest = keyspace.generation.max(*newest);
        }
        let is_old = |it: &Keyspace| it.generation < newest[&it.name];
        let old: Vec<KeyspaceId> =
            self.keyspaces.iter().filter(|(_, it)| is_old(it)).map(|(id, _)| *id).collect();
        for id in old {
            let keyspace = self.keyspaces.remove(&id).expect("it was just seen");
            let stamp = keyspace.stamp;
            self.dropped.insert(id, Dropped::new(keyspace, stamp));
        }
    }
}
