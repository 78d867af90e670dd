//! One world: a disk, an engine on it, and what must be true of both.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use flagstone::core::types::{BlockNumber, StateId};
use flagstone::engine::{BlockHandle, Candidate};
use flagstone::journal::faulty::{Class, Fault, FaultyFiles};
use flagstone::journal::{Journal, JournalConfig};
use flagstone::registry::{LAYOUTS, LayoutEntry};
use flagstone::store::{StoreError, StoreErrorKind};
use flagstone::{Cadence, Engine, EngineConfig, Error, ErrorKind, StateDiff, View};

use super::draw::Draw;
use super::model::State;
use super::store::LogStore;
use crate::support::{CADENCES, Gate, every};

/// How the simulation waits for the engine's threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// After each step, until nothing is done in the background.
    Lockstep,
    /// The same, and the store is held back for many steps, so that batches gather.
    Held,
    /// Not at all.
    Free,
}

/// What does not change in a world.
pub struct Setup {
    pub layout: LayoutEntry,
    pub config: EngineConfig,
    pub pace: Pace,
    /// How often the store writes its rows anew when it is opened, in percent.
    pub anew: u64,
    /// How often a fault is planned before a step, in percent.
    pub faults: u64,
}

impl Setup {
    pub fn draw(draw: &mut Draw) -> Self {
        let cadence = draw.pick(&[CADENCES[0], CADENCES[1], CADENCES[1], every(3), CADENCES[3]]);
        let config = EngineConfig::default()
            .with_cadence(cadence)
            .with_threads(1)
            .with_coalesce(draw.chance(10))
            .with_pending_blocks_max(draw.pick(&[2, 1024]))
            .with_unwritten_batches_max(draw.pick(&[1, 2, 8]))
            .with_persist_every(draw.pick(&[1, 2, 3, 5, 9]))
            .with_journal_segment_bytes(draw.pick(&[300, 1_000, 4_000]))
            .with_read_cache_bytes(draw.pick(&[0, 4_000, 32 << 20]))
            .with_record_cache_bytes(draw.pick(&[None, Some(0), Some(4_000)]))
            .with_recent_blocks_max(draw.pick(&[0, 1, 2, 64]))
            .with_history_blocks(draw.pick(&[0, 1, 3, 8, 64]))
            .with_past_bytes_max(draw.pick(&[0, 2_000, 64 << 20]))
            .with_candidates_max(8)
            .with_scrub_rows_per_second(draw.pick(&[0, 0, 1_000]));
        let pace = draw.pick(&[Pace::Lockstep, Pace::Lockstep, Pace::Held, Pace::Free]);
        let config = match pace {
            Pace::Held => config.with_pending_blocks_max(1024).with_unwritten_batches_max(8),
            Pace::Lockstep | Pace::Free => config,
        };
        Self {
            layout: draw.pick(LAYOUTS),
            config,
            pace,
            anew: draw.pick(&[0, 50, 100]),
            faults: draw.pick(&[0, 2, 6]),
        }
    }
}

/// How a database that runs comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In good order.
    Closed,
    /// The process is gone, what it wrote is seen by the next.
    Killed,
    /// What was not synced is lost, or not, or in part.
    PowerCut,
}

#[derive(Debug, Default, Clone, Copy)]
pub struct Stats {
    pub worlds: u64,
    pub steps: u64,
    pub openings: u64,
    pub kills: u64,
    pub power_cuts: u64,
    pub cuts_while_recovering: u64,
    pub faults: u64,
    pub damaged: u64,
    pub refused_for_damage: u64,
    pub segments_let_go: u64,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { worlds, steps, openings, kills, power_cuts, cuts_while_recovering, .. } = self;
        let Self { faults, damaged, refused_for_damage, segments_let_go, .. } = self;
        write!(
            f,
            "{worlds} worlds, {steps} operations, {openings} openings, {kills} kills, {power_cuts} power cuts, \
             {cuts_while_recovering} faults in recoveries, {faults} in operations, {damaged} times damaged \
             ({refused_for_damage} refused), {segments_let_go} segments let go"
        )
    }
}

impl std::ops::AddAssign for Stats {
    fn add_assign(&mut self, other: Self) {
        self.worlds += other.worlds;
        self.steps += other.steps;
        self.openings += other.openings;
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
        self.cuts_while_recovering += other.cuts_while_recovering;
        self.faults += other.faults;
        self.damaged += other.damaged;
        self.refused_for_damage += other.refused_for_damage;
        self.segments_let_go += other.segments_let_go;
    }
}

/// The states of a database, from the empty one on: that after block `n` is at `n + 1`.
pub type Chain = Vec<State>;

/// All files of a disk, by path.
pub type Content = Vec<(PathBuf, Vec<u8>)>;

pub struct World {
    pub setup: Setup,
    pub draw: Draw,
    pub disk: FaultyFiles,
    /// Number of the directories that the database is in.
    pub home: u64,
    pub gate: Arc<Gate>,
    pub engine: Option<Engine>,
    pub chain: Chain,
    /// What the database may be instead, as an operation failed.
    pub others: Vec<Chain>,
    pub candidates: Vec<(Candidate, State)>,
    /// What candidates set.
    pub proposed: HashMap<StateId, StateDiff>,
    /// Candidates in whose place another block was decided.
    pub dead: HashSet<StateId>,
    pub pins: Vec<(View, State)>,
    pub last: Option<BlockHandle>,
    /// Earlier states are there from this block on, as far as it goes.
    pub undo_floor: u64,
    /// Roots of blocks are there from this one on.
    pub root_floor: u64,
    /// All states that ever were closed.
    pub known: HashMap<StateId, State>,
    /// Files of an older time.
    pub attic: Vec<(u64, Content)>,
    /// A fault may have happened: errors are no surprise.
    pub is_planned: bool,
    pub stats: Stats,
    pub trace: VecDeque<String>,
    salt: u64,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut draw = Draw::new(seed);
        let setup = Setup::draw(&mut draw);
        Self::with(setup, draw)
    }

    pub fn with(setup: Setup, mut draw: Draw) -> Self {
        let disk = FaultyFiles::new();
        if draw.chance(25) {
            disk.nag();
        }
        let mut world = Self {
            setup,
            draw,
            disk,
            home: 0,
            gate: Arc::default(),
            engine: None,
            chain: vec![State::empty(StateId::default())],
            others: Vec::new(),
            candidates: Vec::new(),
            proposed: HashMap::new(),
            dead: HashSet::new(),
            pins: Vec::new(),
            last: None,
            undo_floor: 0,
            root_floor: 0,
            known: HashMap::new(),
            attic: Vec::new(),
            is_planned: false,
            stats: Stats { worlds: 1, ..Stats::default() },
            trace: VecDeque::new(),
            salt: 0,
        };
        let empty = world.chain[0].clone();
        world.known.extend(empty.id.map(|id| (id, empty)));
        world
    }

    pub fn store_dir(&self) -> PathBuf {
        PathBuf::from(format!("/store{}", self.home))
    }

    pub fn journal_dir(&self) -> PathBuf {
        PathBuf::from(format!("/journal{}", self.home))
    }

    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    pub fn tip(&self) -> &State {
        self.chain.last().unwrap()
    }

    /// The last closed block.
    pub fn number(&self) -> Option<u64> {
        (self.chain.len() as u64).checked_sub(2)
    }

    pub fn next_number(&self) -> u64 {
        self.chain.len() as u64 - 1
    }

    pub fn note(&mut self, what: String) {
        if self.trace.len() == 60 {
            self.trace.pop_front();
        }
        self.trace.push_back(what);
    }

    /// The first closed block that states a wrong root.
    pub fn doomed(&self) -> Option<usize> {
        self.chain.iter().position(|state| state.is_wrong)
    }

    pub fn open_store(&mut self, dir: &Path) -> Result<LogStore, Error> {
        self.salt += 1;
        let how = (self.draw.chance(self.setup.anew), self.salt);
        let opened = LogStore::open(&self.disk, dir, &self.gate, how);
        opened.map_err(|error| StoreError::new(StoreErrorKind::Io, error.to_string()).into())
    }

    /// Opens the database as it is on the disk.
    pub fn open(&mut self) -> Result<Engine, Error> {
        self.gate.set(false);
        let (store_dir, journal_dir) = (self.store_dir(), self.journal_dir());
        let store = self.open_store(&store_dir)?;
        let files = Arc::new(self.disk.clone());
        let layout = self.setup.layout.make();
        self.stats.openings += 1;
        Engine::open_journaled(Box::new(store), layout, self.setup.config, files, &journal_dir)
    }

    /// Plans a fault of one class of operations.
    pub fn plan(&mut self, class: Class, fault: Fault) {
        self.note(format!("plan {fault:?} of {class:?}"));
        self.disk.plan_for(class, fault);
        self.is_planned = fault != Fault::None;
    }

    pub fn plan_nothing(&mut self) {
        self.disk.plan(Fault::None);
        self.is_planned = false;
    }

    /// Ends what runs.
    pub fn end(&mut self, end: End) {
        self.note(format!("end: {end:?}"));
        self.candidates.clear();
        self.pins.clear();
        self.dead.clear();
        self.proposed.clear();
        self.last = None;
        let Some(engine) = self.engine.take() else { return self.lose(end) };
        if end == End::Closed {
            self.gate.set(false);
            let closed = engine.close();
            assert!(self.is_planned || closed.is_ok(), "{closed:?}");
            self.plan_nothing();
            return;
        }
        // What still runs goes on with a disk that nobody looks at.
        let after = self.disk.fork();
        let left = std::mem::replace(&mut self.disk, after);
        let gate = std::mem::take(&mut self.gate);
        if end == End::PowerCut {
            left.plan(Fault::PowerCut(0));
        }
        self.lose(end);
        gate.set(false);
        drop(engine);
    }

    /// What the disk loses.
    fn lose(&mut self, end: End) {
        match end {
            End::PowerCut => {
                self.stats.power_cuts += 1;
                let seed = self.draw.next();
                self.disk.crash(seed);
            }
            _ => self.stats.kills += 1,
        }
        self.plan_nothing();
    }

    /// Looking at the journal changes nothing, whatever it is like.
    pub fn look_at_journal(&self) {
        let before = self.content();
        let files = Arc::new(self.disk.clone());
        let _ = Journal::inspect(files, &self.journal_dir(), JournalConfig::default(), None);
        assert!(self.content() == before, "looking at the journal changed it");
    }

    /// All files of the database.
    pub fn content(&self) -> Content {
        let paths = self.disk.paths().into_iter();
        paths.map(|path| (path.clone(), self.disk.content(&path).unwrap_or_default())).collect()
    }

    /// Waits until the engine's threads have done what they were going to.
    pub fn rest(&mut self) {
        if self.setup.pace == Pace::Free {
            return;
        }
        let until = Instant::now() + Duration::from_secs(30);
        let is_held = self.setup.pace == Pace::Held;
        while !self.is_at_rest(is_held) && !self.disk.went_wrong() {
            assert!(Instant::now() < until, "the engine does not come to rest: {:?}", self.engine().head());
            thread::yield_now();
        }
        // The journal's thread begins segments after it has answered.
        let mut before = u64::MAX;
        while before != self.disk.all_operations() {
            before = self.disk.all_operations();
            (0..3).for_each(|_| thread::yield_now());
        }
    }

    fn is_at_rest(&self, is_held: bool) -> bool {
        let head = self.engine().head();
        let due = match self.setup.config.cadence {
            Cadence::Blocks(count) => head.uncommitted >= u64::from(count.get()),
            _ => false,
        };
        !due && (is_held || head.persisted == head.committed)
    }

    /// Opens the database for the first time; something may be planned to go wrong.
    pub fn begin(&mut self) {
        match self.open() {
            Ok(engine) => self.engine = Some(engine),
            Err(error) => self.expect_fault(&error),
        }
        if self.engine.is_none() || self.disk.went_wrong() {
            self.end(End::PowerCut);
            return self.recover(true);
        }
        self.identify();
    }

    /// Opens the database again and again, with faults on the way if there are to be some, and finds out what it is.
    pub fn recover(&mut self, with_faults: bool) {
        let faults = if with_faults { self.draw.below(3) } else { 0 };
        for _ in 0..faults {
            if self.draw.chance(60) {
                self.fail_to_open();
            }
        }
        self.look_at_journal();
        match self.open() {
            Ok(engine) => self.engine = Some(engine),
            Err(error) => panic!("the database does not open: {error}"),
        }
        self.identify();
    }

    /// Opens the database while something goes wrong.
    fn fail_to_open(&mut self) {
        let at = self.draw.next() % 40;
        let fault = self.draw.pick(&[Fault::PowerCut(at), Fault::PowerCut(at), Fault::Fail(at)]);
        self.plan(Class::default(), fault);
        match self.open() {
            Ok(engine) => self.engine = Some(engine),
            Err(error) => self.expect_fault(&error),
        }
        self.stats.cuts_while_recovering += u64::from(self.disk.went_wrong());
        let end =
            if matches!(fault, Fault::Fail(_)) && self.draw.chance(50) { End::Killed } else { End::PowerCut };
        self.end(end);
    }

    /// An error that a fault of the disk explains, and says no more than that.
    #[track_caller]
    pub fn expect_fault(&self, error: &Error) {
        assert!(self.is_planned && self.disk.went_wrong(), "nothing went wrong, and yet: {error}");
        assert!(!error.to_string().contains("panicked"), "{error}");
        let told = [ErrorKind::Store, ErrorKind::Stopped, ErrorKind::Full];
        assert!(told.contains(&error.kind()), "a fault of the disk is told as {:?}: {error}", error.kind());
    }

    /// What the database may be: the states that are known, or one in which a failed operation has come about. Blocks with a wrong root
    /// are refused first.
    fn identify(&mut self) {
        let mut all = std::mem::take(&mut self.others);
        all.push(std::mem::take(&mut self.chain));
        let cut = |chain: &Chain| chain.iter().position(|state| state.is_wrong);
        let doomed: Vec<usize> = all.iter().filter_map(cut).collect();
        if !doomed.is_empty() {
            for _ in 0..3 {
                match self.engine().commit() {
                    Ok(_) => break,
                    Err(Error::RootMismatch { block, .. }) if doomed.contains(&(block.0 as usize + 1)) => {}
                    Err(error) => panic!("blocks that state wrong roots, and: {error}"),
                }
            }
            // Blocks that are committed as one are refused together.
            let with_it = if self.setup.config.coalesce { 8 } else { 0 };
            let prefixes = |chain: &Chain| {
                let end = cut(chain)?;
                let ends = end.saturating_sub(with_it).max(1)..=end;
                Some(ends.map(|end| chain[..end].to_vec()).collect::<Vec<_>>())
            };
            let cut_off: Vec<Chain> = all.iter().filter_map(prefixes).flatten().collect();
            all.retain(|chain| cut(chain).is_none());
            all.extend(cut_off);
        }
        let (head, view) = (self.engine().head(), self.engine().view());
        let values = view.get_many(&super::model::universe()).unwrap();
        let is_it = |chain: &&Chain| {
            let tip = chain.last().unwrap();
            let number = (chain.len() as u64).checked_sub(2).map(BlockNumber);
            number == head.closed && tip.id.is_none_or(|id| id == view.state()) && tip.all_values() == values
        };
        let Some(found) = all.iter().find(is_it) else {
            let expected: Vec<_> =
                all.iter().map(|chain| (chain.len() as i64 - 2, chain.last().unwrap().id)).collect();
            panic!("the database is at {head:?}, {:?}, {values:?}; it may be at {expected:?}", view.state());
        };
        self.chain = found.clone();
        let tip = self.chain.last_mut().unwrap();
        tip.id = Some(view.state());
        self.known.insert(view.state(), tip.clone());
        self.forget_old();
    }

    /// Of how many blocks the earlier states are kept.
    fn forget_old(&mut self) {
        let kept = self.setup.config.history_blocks as u64;
        self.undo_floor = self.undo_floor.max(self.number().unwrap_or_default().saturating_sub(kept));
    }

    /// A block was closed.
    pub fn push(&mut self, state: State, handle: BlockHandle) {
        let state = state.with_id(handle.state());
        self.known.insert(handle.state(), state.clone());
        self.chain.push(state);
        self.last = Some(handle);
        self.forget_old();
        // The block may be taken back before the step ends, and the candidates beside it are gone for good.
        self.bury();
    }
}
