//! Sierra classes of a few instructions, made unlike all others by a number.
//!
//! They are compiled classes (CASM) put together here word by word, so that blocks can declare classes by the hundred, cheaply,
//! and so that what they do can be seen in the state. An entry point makes one syscall whose request is its calldata, so a
//! call of one can do whatever a contract can do with classes.
//!
//! | entry point | calldata | does |
//! |---|---|---|
//! | `write` | key, value | writes a slot |
//! | `replace` | class hash | replaces the contract's class |
//! | `library_call` | class hash, selector, length and calldata of the call | calls another class on this contract's storage |
//! | `call` | contract, selector, length and calldata of the call | calls another contract |
//! | `deploy` | class hash, salt | deploys a contract of a class without a constructor |
//! | `__validate__`, `__validate_declare__`, `__validate_deploy__` | any | finds everything valid, so a contract can be an account |
//! | `__execute__` | as `call` | as `call`: a transaction is one call |

use flagstone_core::felt::Felt;
use flagstone_core::types::ClassHash;
use serde_json::{Value, json};
use starknet_api::abi::abi_utils::selector_from_name;
use starknet_api::contract_class::{ContractClass, SierraVersion};

use super::parts::{Part, felt};
use crate::sequencer::classes::{ClassError, DeclaredClass};

/// A word of a syscall's request.
#[derive(Clone, Copy)]
enum Word {
    /// This felt of the calldata.
    Calldata(u16),
    /// Where the calldata goes on after so many felts.
    CalldataFrom(u16),
    CalldataEnd,
    Zero,
}

/// What a syscall answers after gas and failure flag.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Nothing,
    /// Begin and end of what a call returned, which the entry point returns, too.
    Returned,
    /// The address, and what the constructor returned.
    Deployed,
}

use Word::{Calldata, CalldataEnd, CalldataFrom, Zero};

/// A system call: its selector, its request, and what it answers.
type Syscall = (&'static str, &'static [Word], Answer);

const CALL: Syscall =
    ("CallContract", &[Calldata(0), Calldata(1), CalldataFrom(3), CalldataEnd], Answer::Returned);
const SYSCALLS: [(&str, Syscall); 6] = [
    ("write", ("StorageWrite", &[Zero, Calldata(0), Calldata(1)], Answer::Nothing)),
    ("replace", ("ReplaceClass", &[Calldata(0)], Answer::Nothing)),
    (
        "library_call",
        ("LibraryCall", &[Calldata(0), Calldata(1), CalldataFrom(3), CalldataEnd], Answer::Returned),
    ),
    ("call", CALL),
    ("__execute__", CALL),
    ("deploy", ("Deploy", &[Calldata(0), Calldata(1), CalldataEnd, CalldataEnd, Zero], Answer::Deployed)),
];
const VALIDATIONS: [&str; 3] = ["__validate__", "__validate_declare__", "__validate_deploy__"];

/// The class of this number, under a class hash that stands for the real one. Classes of two numbers differ in all their hashes.
///
/// # Errors
/// [`ClassError::Unusable`] if the executor's crates do not take it for a class.
pub fn small_class(number: u64) -> Result<DeclaredClass, ClassError> {
    let class_hash = ClassHash(felt(Part::DeclaredClass, number));
    let class =
        compiled(number).map_err(|error| ClassError::Unusable { class_hash, problem: error.to_string() })?;
    Ok(DeclaredClass::new(class_hash, class))
}

fn compiled(number: u64) -> Result<ContractClass, serde_json::Error> {
    let (mut code, mut entry_points) = (Code::default(), Vec::new());
    for (name, (syscall, request, answer)) in SYSCALLS {
        entry_points.push((name, code.words.len()));
        code.syscall(syscall, request, answer);
    }
    for name in VALIDATIONS {
        entry_points.push((name, code.words.len()));
        code.valid();
    }
    code.words.push(number.into());
    let entry_point = |(name, offset): (&str, usize)| json!({ "selector": hex(selector_from_name(name).0), "offset": offset, "builtins": [] });
    let mut external: Vec<Value> = entry_points.into_iter().map(entry_point).collect();
    external.sort_by_key(|entry_point| entry_point["selector"].to_string());
    let casm = json!({
        "prime": "0x800000000000011000000000000000000000000000000000000000000000001",
        "compiler_version": "2.11.2",
        "bytecode": code.words.into_iter().map(hex).collect::<Vec<String>>(),
        "hints": code.hints,
        "entry_points_by_type": { "EXTERNAL": external, "L1_HANDLER": [], "CONSTRUCTOR": [] },
    });
    Ok(ContractClass::V1((serde_json::from_value(casm)?, SierraVersion::LATEST)))
}

fn hex(felt: Felt) -> String {
    format!("{felt:#x}")
}

// Where an entry point finds its arguments, below its frame pointer.
const GAS: i16 = -6;
const SYSCALLS_AT: i16 = -5;
const CALLDATA: i16 = -4;
const CALLDATA_END: i16 = -3;

/// Instructions with their immediates, and the hints between them.
#[derive(Default)]
struct Code {
    words: Vec<Felt>,
    hints: Vec<Value>,
}

/// An instruction: flags, and the offsets of destination and operands, which are biased by 2^15.
fn instruction(flags: u16, destination: i16, first: i16, second: i16) -> Felt {
    let biased = |offset: i16| u64::from((offset as u16) ^ 0x8000);
    let offsets = biased(destination) | biased(first) << 16 | biased(second) << 32;
    Felt::from(offsets | u64::from(flags) << 48)
}

impl Code {
    /// `[ap] = value; ap++`
    fn push(&mut self, value: Felt) {
        self.words.extend([instruction(0x4806, 0, -1, 1), value]);
    }

    /// `[ap] = [fp + at]; ap++`
    fn push_local(&mut self, at: i16) {
        self.words.push(instruction(0x480a, 0, -1, at));
    }

    /// `[ap] = [fp + at] + added; ap++`
    fn push_sum(&mut self, at: i16, added: u16) {
        self.words.extend([instruction(0x4826, 0, at, 1), added.into()]);
    }

    /// `[ap] = [[fp + at] + offset]; ap++`
    fn push_at(&mut self, at: i16, offset: u16) {
        self.words.push(instruction(0x4802, 0, at, offset as i16));
    }

    /// `[ap - 1] = [[fp + at] + offset]`: what was pushed last is put there.
    fn put(&mut self, at: i16, offset: u16) {
        self.words.push(instruction(0x4002, -1, at, offset as i16));
    }

    fn hint(&mut self, hint: Value) {
        self.hints.push(json!([self.words.len(), [hint]]));
    }

    fn end(&mut self) {
        self.words.push(instruction(0x208b, -2, -1, -1));
    }

    /// An entry point that makes a syscall, and fails with it.
    fn syscall(&mut self, name: &str, request: &[Word], answer: Answer) {
        self.push(Felt::from_bytes_be_slice(name.as_bytes()));
        self.put(SYSCALLS_AT, 0);
        self.push_local(GAS);
        self.put(SYSCALLS_AT, 1);
        let mut at = 2;
        for word in request {
            match *word {
                Calldata(index) => self.push_at(CALLDATA, index),
                CalldataFrom(index) => self.push_sum(CALLDATA, index),
                CalldataEnd => self.push_local(CALLDATA_END),
                Zero => self.push(Felt::ZERO),
            }
            self.put(SYSCALLS_AT, at);
            at += 1;
        }
        self.hint(
            json!({ "SystemCall": { "system": { "Deref": { "register": "FP", "offset": SYSCALLS_AT } } } }),
        );
        let (gas, answered) = (at, at + 2);
        let answers = match answer {
            Answer::Nothing => 0,
            Answer::Returned => 2,
            Answer::Deployed => 3,
        };
        self.push_at(SYSCALLS_AT, gas);
        self.push_sum(SYSCALLS_AT, answered + answers);
        self.push(Felt::ZERO);
        if answer == Answer::Returned {
            self.push_at(SYSCALLS_AT, answered);
            self.push_at(SYSCALLS_AT, answered + 1);
        } else {
            self.push_local(CALLDATA_END);
            self.push_local(CALLDATA_END);
        }
        self.end();
    }

    /// An entry point that returns `VALID`.
    fn valid(&mut self) {
        self.hint(json!({ "AllocSegment": { "dst": { "register": "AP", "offset": 0 } } }));
        // `ap += 1`
        self.words.extend([instruction(0x0407, -1, -1, 1), Felt::ONE]);
        self.push(Felt::from_bytes_be_slice(b"VALID"));
        self.put(0, 0);
        self.push_local(GAS);
        self.push_local(SYSCALLS_AT);
        self.push(Felt::ZERO);
        self.push_local(0);
        self.push_sum(0, 1);
        self.end();
    }
}
