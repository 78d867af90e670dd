//! The kinds of load that there are.

use std::str::FromStr;

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Workload {
    /// Independent transfers.
    Transfers,
    /// Calls that write many slots over many contracts.
    Multicall,
    /// Transactions that depend on one another.
    Contended,
    /// All of these and more.
    Mixed,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Transfers, Self::Multicall, Self::Contended, Self::Mixed];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transfers => "transfers",
            Self::Multicall => "multicall",
            Self::Contended => "contended",
            Self::Mixed => "mixed",
        }
    }
}

impl FromStr for Workload {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|workload| workload.name() == name)
            .ok_or_else(|| format!("no workload named `{name}`; known workloads: {}", known()))
    }
}
