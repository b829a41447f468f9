//! Where the records of a shard lie: in blocks, each allocated once. A box for each record would be
//! slower to get, and would leave the heap in pieces around what requests allocate and free.

use super::record::Record;

/// How many records a block holds.
const BLOCK: usize = 32;

#[derive(Default)]
pub(super) struct Slab {
    blocks: Vec<Vec<Option<Record>>>,
    /// Places that were left, to be taken again.
    left: Vec<Place>,
}

/// Where in its slab a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u32);

impl Slab {
    pub(super) fn insert(&mut self, record: Record) -> Place {
        if let Some(place) = self.left.pop() {
            *self.slot_mut(place) = Some(record);
            return place;
        }
        if self.blocks.last().is_none_or(|block| block.len() == BLOCK) {
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        let number = self.blocks.len() - 1;
        let block = &mut self.blocks[number];
        block.push(Some(record));
        // Four billion records of 200 bytes each would not fit into memory.
        Place((number * BLOCK + block.len() - 1) as u32)
    }

    pub(super) fn remove(&mut self, place: Place) -> Record {
        let record = self.slot_mut(place).take();
        self.left.push(place);
        record.unwrap_or_else(|| unreachable!("a place is left once"))
    }

    pub(super) fn get(&self, place: Place) -> &Record {
        let slot = self.blocks[place.0 as usize / BLOCK][place.0 as usize % BLOCK].as_ref();
        slot.unwrap_or_else(|| unreachable!("the table knows only places that are taken"))
    }

    pub(super) fn get_mut(&mut self, place: Place) -> &mut Record {
        let slot = self.slot_mut(place).as_mut();
        slot.unwrap_or_else(|| unreachable!("the table knows only places that are taken"))
    }

    /// Every record, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.blocks.iter().flatten().flatten()
    }

    fn slot_mut(&mut self, place: Place) -> &mut Option<Record> {
        &mut self.blocks[place.0 as usize / BLOCK][place.0 as usize % BLOCK]
    }
}
