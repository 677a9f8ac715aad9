//! Settings as they are given on a command line, one a line.

use slotcast_net::config::Config;

/// A configuration that is taken can be printed, read back as the same, and used.
pub fn settings_are_taken_or_refused(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let settings: Vec<String> = text.lines().map(String::from).collect();
    let config = match Config::load(None, &settings) {
        Ok(config) => config,
        Err(error) => {
            assert!(!format!("{error:#}").is_empty());
            return false;
        }
    };
    let _ = (config.data_options().is_ok(), config.session_options().is_ok());
    let printed = toml::to_string(&config).expect("what was read can be printed");
    let again: Config = toml::from_str(&printed).expect("what was printed can be read");
    again.check().expect("it was good before");
    assert_eq!(toml::to_string(&again).expect("it can be printed"), printed);
    true
}
