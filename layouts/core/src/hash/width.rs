//! How wide the windows of the process's Pedersen tables are, chosen once.

use std::fmt;
use std::sync::OnceLock;

/// Bits per window of the Pedersen tables: memory against speed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum TableWidth {
    /// 5.5 MiB, 42 points per hash: for small machines.
    Bits12,
    /// 19.0 MiB, 36 points per hash.
    #[default]
    Bits14,
}

impl TableWidth {
    pub(crate) const fn bits(self) -> u32 {
        match self {
            TableWidth::Bits12 => 12,
            TableWidth::Bits14 => 14,
        }
    }
}

/// [`configure`] came after the first hash, or twice with different widths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WidthInUse {
    /// The width asked for.
    pub asked: TableWidth,
    /// The width in use, to the end of the process.
    pub in_use: TableWidth,
}

impl fmt::Display for WidthInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "table width in use: asked for {}-bit windows, process hashes with {}-bit windows; configure before the first hash",
            self.asked.bits(),
            self.in_use.bits()
        )
    }
}

impl std::error::Error for WidthInUse {}

static WIDTH: OnceLock<TableWidth> = OnceLock::new();

pub(crate) fn width() -> TableWidth {
    *WIDTH.get_or_init(TableWidth::default)
}

/// Chooses the table width of the process. Call it before the first hash.
///
/// # Errors
/// If another width is already in use.
pub fn configure(asked: TableWidth) -> Result<(), WidthInUse> {
    let in_use = *WIDTH.get_or_init(|| asked);
    if in_use == asked { Ok(()) } else { Err(WidthInUse { asked, in_use }) }
}
