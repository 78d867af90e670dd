//! Reads of an executor through a view: known to the read cache, known to be absent, and not known, beside the store's own
//! get of the same rows.
//!
//! The state is workload S with 10^5 leaves over 200 contracts, in one engine per layout and store. One iteration is one
//! `View::storage_at`. `hit` and `absent-hit` go round 1 000 keys that the cache holds, a busy block's, and
//! `hit-10000` round ten times as many; `miss` and `absent-miss` go round
//! 60 000 keys through a cache that holds a small part of them, so that each read looks into the cache, goes to the layout,
//! and puts the answer in place of another; `off` is the same without a cache; `store` is the store's own get of the row
//! (for keys that are there), without seal or decoding. Keys come in random order. The summary at the end interleaves all
//! of them; and it times what closing a block adds: a block of 10 000 slots with and without the cache.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion};
use flagstone::core::diff::StateDiff;
use flagstone::core::types::{ContractAddress, StorageKey, StorageValue, TrieKey};
use flagstone::database::STORES;
use flagstone::store::{MemoryStore, Store, StoreRead};
use flagstone::{Cadence, Engine, EngineConfig, StateUpdate, View, layout};
use flagstone_benches::interleaved::{Contender, compare};
use flagstone_benches::store_in;
use flagstone_benches::workload_s::{ROOTS, WorkloadS};

/// Slots asked for again and again.
const HOT: usize = 1_000;
/// Slots asked for so seldom that a small cache has lost them.
const COLD: usize = 60_000;
const CACHE_BYTES: usize = 64 << 20;
/// Room for some thousand entries.
const SMALL_CACHE_BYTES: usize = 1 << 20;
/// Slots of a block of the base.
const BASE_BLOCK_SLOTS: usize = 1_000;
/// Slots of a block that is closed.
const BLOCK_SLOTS: usize = 10_000;

type Slot = (ContractAddress, StorageKey);

/// Something that reads once, and what it is called.
type Reading<'a> = (&'static str, Box<dyn FnMut() + 'a>);

/// A store that the engine and the bench both read.
type Shared = Arc<dyn Store>;

#[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
fn engine(store: &Shared, name: &str, read_cache_bytes: usize) -> Engine {
    let layout = layout(name).expect("a layout of the registry").make();
    let config =
        EngineConfig::default().with_cadence(Cadence::OnRequest).with_read_cache_bytes(read_cache_bytes);
    Engine::open(Box::new(Arc::clone(store)), layout, config).expect("the store is sound")
}

#[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
fn close(engine: &Engine, diff: StateDiff) {
    let update = StateUpdate { starknet_version: "0.14.0".parse().ok(), ..StateUpdate::from(diff) };
    engine.close_block(&update).expect("blocks follow");
}

#[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
fn read(view: &View, (address, key): &Slot) {
    black_box(view.storage_at(address, key).expect("the view is of the last block"));
}

/// The flat layout's row of a slot.
fn row_key((address, key): &Slot) -> Vec<u8> {
    [&[flagstone::store::keyspace::LAYOUT_FIRST][..], address.as_be(), key.as_be()].concat()
}

/// Goes round a list.
fn round<'a, T>(items: &'a [T]) -> impl FnMut() -> &'a T {
    let mut at = 0;
    move || {
        at = if at + 1 == items.len() { 0 } else { at + 1 };
        &items[at]
    }
}

/// The same slots in blocks that every store takes.
fn in_blocks(base: &[StateDiff]) -> Vec<StateDiff> {
    let contracts = base.iter().flat_map(StateDiff::contracts);
    let slots: Vec<_> = contracts
        .flat_map(|contract| contract.storage.iter().map(|slot| (contract.address, *slot)))
        .collect();
    let block = |slots: &[(ContractAddress, (StorageKey, StorageValue))]| {
        let builder = slots.iter().fold(StateDiff::builder(), |builder, (address, (key, value))| {
            builder.storage(*address, *key, *value)
        });
        #[expect(clippy::expect_used, reason = "slots are distinct")]
        builder.build().expect("no entries disagree")
    };
    slots.chunks(BASE_BLOCK_SLOTS).map(block).collect()
}

/// Slots of the base in an order that has nothing to do with that of their rows, and others that are not there.
fn slots(base: &[StateDiff]) -> (Vec<Slot>, Vec<Slot>) {
    let contracts = base.iter().flat_map(StateDiff::contracts);
    let mut present: Vec<Slot> = contracts
        .flat_map(|contract| contract.storage.iter().map(|(key, _)| (contract.address, *key)))
        .collect();
    present.sort_by_cached_key(|(address, key)| {
        let bytes = [address.as_be()[24..].to_vec(), key.as_be()[24..].to_vec()].concat();
        bytes.iter().fold(0u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
    });
    let absent = present.iter().map(|(address, key)| {
        let mut bytes = *key.as_be();
        bytes[31] ^= 1;
        (*address, StorageKey::from(TrieKey::from_be(bytes).unwrap_or_default()))
    });
    let absent = absent.collect();
    (present, absent)
}

/// Two hundred reads for one look at the clock, which takes as long as a hit.
fn many<'a>(mut run: impl FnMut() + 'a) -> impl FnMut() + 'a {
    move || (0..200).for_each(|_| run())
}

/// What is timed over one state.
struct Case {
    name: String,
    store: Shared,
    cached: Engine,
    /// Over the same rows; nothing is written any more when these are opened.
    small: Engine,
    off: Engine,
}

impl Case {
    fn new(layout: &str, store: Shared, base: &[StateDiff]) -> Self {
        let writer = engine(&store, layout, 0);
        base.iter().for_each(|diff| close(&writer, diff.clone()));
        #[expect(clippy::expect_used, reason = "a bench over a damaged state measures nothing")]
        writer.commit().expect("no root is stated");
        // What is committed is in the store when the engine ends.
        drop(writer);
        let name = format!("layout={layout} store={}", store.name());
        let open = |bytes| engine(&store, layout, bytes);
        Self { name, cached: open(CACHE_BYTES), small: open(SMALL_CACHE_BYTES), off: open(0), store }
    }

    fn contenders<'a>(&'a self, present: &'a [Slot], absent: &'a [Slot]) -> Vec<Reading<'a>> {
        let mut contenders: Vec<Reading<'a>> = Vec::new();
        let rows: Vec<Vec<u8>> = present[..COLD].iter().map(row_key).collect();
        if self.off.identity().layout == "flat" {
            let (store, mut at) = (&self.store, 0);
            let get = move || {
                at = (at + 1) % rows.len();
                black_box(store.get(&rows[at]).is_ok());
            };
            contenders.push(("store", Box::new(get)));
        }
        let mut add = |name, engine: &Engine, slots: &'a [Slot]| {
            let view = engine.view();
            slots.iter().for_each(|slot| read(&view, slot));
            let mut next = round(slots);
            contenders.push((name, Box::new(move || read(&view, next()))));
        };
        add("off", &self.off, &present[..COLD]);
        add("miss", &self.small, &present[..COLD]);
        add("absent-miss", &self.small, &absent[..COLD]);
        add("hit", &self.cached, &present[..HOT]);
        add("hit-10000", &self.cached, &present[..10 * HOT]);
        add("absent-hit", &self.cached, &absent[..HOT]);
        contenders
    }
}

fn main() {
    let (leaves, contracts, ..) = ROOTS[0];
    let (mut workload, base) = WorkloadS::new(leaves, contracts);
    let (present, absent) = slots(&base);
    let base = in_blocks(&base);
    #[expect(clippy::expect_used, reason = "a bench without a place for its database measures nothing")]
    let directory = tempfile::tempdir().expect("there is a directory for temporary files");
    let cases = [
        Case::new("flat", Arc::new(MemoryStore::new()), &base),
        Case::new("patricia-path", Arc::new(MemoryStore::new()), &base),
        Case::new("flat", Arc::from(store_in(&STORES[0], directory.path())), &base),
    ];
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("read");
    for case in &cases {
        for (kind, mut run) in case.contenders(&present, &absent) {
            let id = BenchmarkId::from_parameter(format!("{} kind={kind}", case.name));
            group.bench_function(id, |bencher| bencher.iter(&mut run));
        }
    }
    group.finish();
    criterion.final_summary();
    for case in &cases {
        let contenders = case.contenders(&present, &absent).into_iter();
        let contenders = contenders.map(|(kind, run)| Contender::new(kind, 200, many(run))).collect();
        compare(&format!("read, {} (nanoseconds a read)", case.name), 101, contenders);
    }
    let blocks: Vec<StateDiff> = (0..40).map(|_| workload.block(BLOCK_SLOTS)).collect();
    let closing = [("without cache", 0), ("with cache", CACHE_BYTES)].map(|(name, bytes)| {
        let writer = engine(&(Arc::new(MemoryStore::new()) as Shared), "flat", bytes);
        let mut next = round(&blocks);
        Contender::new(name, BLOCK_SLOTS, move || {
            // Only closing: the commitment is another matter, and starting over keeps it away.
            close(&writer, next().clone());
        })
    });
    compare("close, layout=flat store=memory (nanoseconds a written slot)", 15, closing.into());
}
