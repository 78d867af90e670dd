//! How settings are set that may become more: by methods, as a literal would have to name all of them.

/// Methods of a struct of settings, one for each field: each takes the settings and a value, and gives them back with it.
macro_rules! setters {
    ($($name:ident => $field:ident: $type:ty),+ $(,)?) => {
        $(
            #[doc = concat!("These settings with another [`", stringify!($field), "`](Self::", stringify!($field), ").")]
            #[must_use]
            pub const fn $name(mut self, $field: $type) -> Self {
                self.$field = $field;
                self
            }
        )+
    };
}

pub(crate) use setters;
