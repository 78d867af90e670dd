//! What every store must do (`flagstone_testkit::stores`), run against each of them.

use std::path::Path;

use flagstone::database::{STORES, StoreSettings};
use flagstone::store::{KEY_BYTES_MAX, MemoryStore, Sealed, VALUE_BYTES_MAX};
use flagstone_testkit::stores::{KEY_BYTES, ROW_BYTES, conforms, keeps_rows};

#[test]
fn the_memory_store_conforms() {
    conforms(Path::new(""), |_| Box::new(MemoryStore::new()));
    keeps_rows(Path::new(""), |_| Box::new(Sealed::new(MemoryStore::new())));
}

#[test]
fn each_store_in_a_directory_conforms_and_so_does_it_sealed() {
    for entry in STORES {
        let dir = tempfile::tempdir().unwrap();
        let open = |dir: &Path| entry.open(dir, &StoreSettings::default()).unwrap();
        conforms(&dir.path().join("plain"), open);
        keeps_rows(&dir.path().join("sealed"), |dir| Box::new(Sealed::from_box(open(dir))));
    }
}

#[test]
fn the_exam_asks_for_what_the_engine_writes() {
    assert_eq!((KEY_BYTES, ROW_BYTES), (KEY_BYTES_MAX, VALUE_BYTES_MAX));
}
