//! `flagstone sequence`: blocks of generated transactions, executed by StarkWare's executor on a flagstone state.

#[cfg(feature = "blockifier")]
pub use with_executor::run;

#[cfg(not(feature = "blockifier"))]
pub fn run(_: &super::args::Sequence, _: &mut super::output::Output) -> Result<(), super::failure::Failure> {
    Err(super::failure::Failure::usage(
        "this program was built without the executor; build it with it: \
         cargo build --release --features blockifier",
    ))
}

#[cfg(feature = "blockifier")]
mod with_executor {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use flagstone::EngineConfig;
    use flagstone::sequencer::classes::{EngineClasses, ReadyClasses};
    use flagstone::sequencer::run::{self, BlockReport, RunConfig, Summary};
    use flagstone::sequencer::workload::Workload;
    use flagstone::sequencer::{Producer, ProducerConfig, SequencerError};
    use serde_json::{Value, json};

    use crate::cli::args::Sequence;
    use crate::cli::failure::Failure;
    use crate::cli::output::{BAD, DIM, GOOD, Output, styled};
    use crate::cli::place::Place;

    /// Bytes of classes that are kept ready to run.
    const CLASS_CACHE_BYTES: usize = 256 << 20;

    pub fn run(args: &Sequence, output: &mut Output) -> Result<(), Failure> {
        let workload: Workload = args.workload.parse().map_err(Failure::usage)?;
        let place = Place::new(args.data.as_deref(), args.kept.store.as_deref())?;
        let producer = producer(args, &place)?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let handler = ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed));
        handler.map_err(|error| Failure::store(format!("cannot listen for Ctrl-C: {error}")))?;
        let config = RunConfig {
            workload,
            seed: args.seed,
            blocks: args.blocks,
            transactions: args.txs,
            verify: !args.no_verify,
        };
        let continued = producer.engine().head().closed.is_some();
        output.start_blocks(args.blocks);
        let (mut blocks, mut transactions) = (0, 0);
        let mut answered = Ok(());
        let outcome = run::run(&producer, &config, &stop, &mut |block| {
            blocks += u64::from(block.number.0 > 0);
            transactions += block.transactions;
            if let Err(failure) = print_block(args, output, block) {
                // Blocks that nobody hears of are not produced on and on.
                answered = Err(failure);
                stop.store(true, Ordering::Relaxed);
            }
            if let Some(panic) = &block.panicked {
                output.note(&format!(
                    "block {}: the executor's workers panicked ({panic}); it was executed once more, one transaction \
                     after the other",
                    block.number
                ));
            }
            output.progress(blocks, || format!("{transactions} transactions"));
        });
        output.end_progress();
        let summary = match outcome {
            Ok(summary) => answered.map(|()| summary)?,
            Err(error) => return Err(Failure::from(error).and(answered)),
        };
        print_summary(args, output, &summary, &producer, &place)?;
        if stop.load(Ordering::Relaxed) {
            output.note("stopped at a block's border; the same command continues from there");
        }
        if continued && config.verify {
            output
                .note("the state was continued, so its roots were not compared with those of another layout");
        }
        Ok(())
    }

    fn producer(args: &Sequence, place: &Place) -> Result<Producer, Failure> {
        let engine = Arc::new(place.open(&args.kept.options(EngineConfig::default()))?);
        let classes = ReadyClasses::new(EngineClasses::new(Arc::clone(&engine)), CLASS_CACHE_BYTES);
        let workers = ProducerConfig::default().with_workers(args.workers);
        let producer = Producer::new(Arc::clone(&engine), Arc::new(classes), workers);
        Ok(if args.no_hints { producer } else { producer.with_prefetch(engine) })
    }

    fn ms(duration: Duration) -> f64 {
        (duration.as_secs_f64() * 1e5).round() / 100.0
    }

    fn print_block(args: &Sequence, output: &mut Output, block: &BlockReport) -> Result<(), Failure> {
        if args.json {
            return output.line(&block_json(block).to_string());
        }
        let verdict = if block.verified { styled(GOOD, "ok") } else { styled(DIM, "not compared") };
        let failed = match block.failed {
            0 => String::new(),
            failed => styled(BAD, format!(" {failed} failed")),
        };
        output.line(&format!(
            "block {:<6} {:>5} txs{failed}  executed {:>7.1} ms  closed {:>5.1} ms  root {:>6.1} ms (lag {})  \
             {:>6} reads, {:>5.1} % hits  {:>6} writes  root {}  {verdict}",
            block.number,
            block.transactions,
            ms(block.execution),
            ms(block.close),
            ms(block.root_latency),
            block.lag,
            block.reads.of_values(),
            100.0 * block.hit_rate,
            block.writes,
            block.root
        ))
    }

    fn block_json(block: &BlockReport) -> Value {
        json!({
            "block": block.number.0,
            "transactions": block.transactions,
            "failed": block.failed,
            "writes": block.writes,
            "execution_ms": ms(block.execution),
            "close_ms": ms(block.close),
            "waited_ms": ms(block.waited),
            "root_ms": ms(block.root_latency),
            "lag": block.lag,
            "reads": {
                "storage": block.reads.storage,
                "nonce": block.reads.nonces,
                "class_hash": block.reads.class_hashes,
                "compiled_class_hash": block.reads.compiled_class_hashes,
                "class": block.reads.classes,
                "missed": block.reads.misses,
                "missed_ms": ms(block.reads.missing),
            },
            "hit_rate": block.hit_rate,
            "root": block.root.to_string(),
            "verified": block.verified,
        })
    }

    fn print_summary(
        args: &Sequence,
        output: &mut Output,
        summary: &Summary,
        producer: &Producer,
        place: &Place,
    ) -> Result<(), Failure> {
        let engine = producer.engine();
        let (layout, store) = (engine.identity().layout, engine.store_name());
        let root = engine.head().root.commitment;
        let seconds = summary.elapsed.as_secs_f64();
        let tps = summary.transactions as f64 / summary.producing().as_secs_f64().max(f64::MIN_POSITIVE);
        let hit_rate = summary.reads.hit_rate();
        let after_first = (summary.blocks > 1).then(|| summary.reads_after_first.hit_rate());
        if args.json {
            let facts = json!({
                "blocks": summary.blocks, "transactions": summary.transactions, "failed": summary.failed,
                "verified": summary.verified, "seconds": seconds, "tps": tps,
                "waiting": summary.waiting(), "missing": summary.missing(),
                "reads": summary.reads.of_values(), "missed": summary.reads.misses,
                "hit_rate": hit_rate, "hit_rate_after_first": after_first,
                "hints": !args.no_hints, "read_ahead": summary.read_ahead,
                "workload": args.workload, "workers": args.workers, "seed": args.seed,
                "layout": layout, "store": store, "root": root.to_string(),
            });
            return output.line(&json!({ "summary": facts }).to_string());
        }
        output.line(&format!(
            "{} blocks, {} transactions, {} failed, {} roots compared and equal, {seconds:.2} s; {tps:.0} TPS while \
             producing; {layout} on {store}{}",
            summary.blocks,
            summary.transactions,
            summary.failed,
            summary.verified,
            place.suffix()
        ))?;
        output.line(&format!(
            "the executor waited {:.2} % of that time between blocks (for closing and roots), and {:.2} % in reads that \
             missed",
            100.0 * summary.waiting(),
            100.0 * summary.missing()
        ))?;
        let hints = match args.no_hints {
            true => "no hints".to_owned(),
            false => format!("hints read {} values ahead", summary.read_ahead),
        };
        let after_first = after_first
            .map_or(String::new(), |rate| format!(", {:.2} % after the first block", 100.0 * rate));
        output.line(&format!(
            "{} reads, {:.2} % hits{after_first}; {hints}",
            summary.reads.of_values(),
            100.0 * hit_rate,
        ))
    }

    impl From<SequencerError> for Failure {
        fn from(error: SequencerError) -> Self {
            match &error {
                SequencerError::Engine(error) => error.into(),
                SequencerError::Foreign(_) => Self::usage(error.to_string()),
                _ => Self::store(error.to_string()),
            }
        }
    }
}
