//! The command line: one verb per file, help that teaches, exit codes that mean something.

mod check;
mod demo;
mod emulate;
mod key;
mod limits;
mod operator;
mod run;
mod sources;
mod switch;
mod usage;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{ColorChoice, Parser, Subcommand};

use crate::config::{self, Mistake};
use crate::telemetry::logger;

/// What a verb comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Success = 0,
    /// Something went wrong while doing it.
    Failure = 1,
    /// The command line or the configuration is wrong; trying again changes nothing.
    Misconfigured = 2,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

#[derive(Parser)]
#[command(
    name = "tidegate",
    version,
    about = "An edge proxy between a company's services and the DeepSeek API",
    long_about = "An edge proxy between a company's services (tenants) and the DeepSeek API.\n\n\
        A tenant points any OpenAI or Anthropic SDK at tidegate with a key of its own. Tidegate checks \
        the key, picks an upstream account, hides the real key, streams the answer through and counts \
        what was used.",
    after_long_help = "First steps:\n  \
        tidegate demo                            try it, with an emulated DeepSeek behind it\n  \
        tidegate key new --tenant search         make a key for a tenant\n  \
        tidegate check -c tidegate.yaml          find every mistake in a configuration\n  \
        tidegate run -c tidegate.yaml            serve\n  \
        tidegate limits show search              what a tenant has used of its limits\n  \
        tidegate usage -c tidegate.yaml          who used how much this month\n  \
        tidegate switch off tenant search …      stop what does harm; also for models and upstreams\n\n\
        Exit codes:\n  \
        0  done\n  \
        1  failed while running (a port is taken, a file cannot be read, no gateway answers)\n  \
        2  the command line or the configuration is wrong; trying again changes nothing\n\n\
        Signals to a running gateway:\n  \
        HUP        read the configuration and the certificates again; keep the old ones if they are wrong\n  \
        TERM, INT  stop taking requests, let running ones finish; a second one ends it at once\n\n\
        Environment:\n  \
        NO_COLOR   set to anything, output is not coloured"
)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve, until told to stop
    Run(run::Options),
    /// Check a configuration: all mistakes at once, or a summary
    Check(check::Options),
    /// Try the gateway, with an emulated DeepSeek behind it and a key to use
    Demo(demo::Options),
    /// Run the emulated DeepSeek API alone
    Emulate(emulate::Options),
    /// Make credentials for tenants
    Key {
        #[command(subcommand)]
        verb: key::Verb,
    },
    /// See how a tenant's limits stand in the running gateway, extend or reset them
    Limits {
        #[command(subcommand)]
        verb: limits::Verb,
    },
    /// Switch a tenant, a model or an upstream of the running gateway off or on
    Switch {
        #[command(subcommand)]
        verb: switch::Verb,
    },
    /// Send nothing new to an account or an endpoint; what is under way there ends as it would
    Drain {
        #[command(subcommand)]
        place: switch::Place<switch::Why>,
    },
    /// Use a drained account or endpoint again
    Undrain {
        #[command(subcommand)]
        place: switch::Place<switch::WhyNot>,
    },
    /// Report who used how much, and what it cost
    Usage(usage::Options),
    /// Print the JSON Schema of the configuration, for editors
    Schema,
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // A closed pipe is no reason to fail over a help text.
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Misconfigured
            } else {
                Exit::Success
            }
            .into();
        }
    };
    let exit = match arguments.verb {
        Verb::Run(options) => run::run(options),
        Verb::Check(options) => check::check(options),
        Verb::Demo(options) => demo::demo(&options),
        Verb::Emulate(options) => emulate::emulate(&options),
        Verb::Key { verb } => key::key(verb),
        Verb::Limits { verb } => limits::limits(verb),
        Verb::Switch { verb } => switch::switch(verb),
        Verb::Drain { place } => switch::drain(place),
        Verb::Undrain { place } => switch::undrain(place),
        Verb::Usage(options) => usage::usage(&options),
        Verb::Schema => print(&(config::schema::text() + "\n")),
    };
    exit.into()
}

fn parse() -> Result<CommandLine, clap::Error> {
    use clap::{CommandFactory, FromArgMatches};
    let no_color = config::process_environment("NO_COLOR");
    let colour = logger::colour_wanted(&io::stdout(), no_color.as_deref());
    let choice = if colour {
        ColorChoice::Auto
    } else {
        ColorChoice::Never
    };
    let matches = CommandLine::command().color(choice).try_get_matches()?;
    CommandLine::from_arg_matches(&matches)
}

/// Writes to standard output; a reader that has gone away is not an error worth a message.
fn print(text: &str) -> Exit {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Exit::Success,
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Exit::Success,
        Err(_) => Exit::Failure,
    }
}

/// Writes to standard error what went wrong.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "tidegate: {text}");
}

/// Lists what is wrong with a configuration.
fn complain_of(mistakes: &[Mistake]) -> Exit {
    let mut out = io::stderr().lock();
    for mistake in mistakes {
        let _ = writeln!(out, "{mistake}");
    }
    let noun = if mistakes.len() == 1 {
        "mistake"
    } else {
        "mistakes"
    };
    let _ = writeln!(
        out,
        "tidegate: {} {noun} in the configuration",
        mistakes.len()
    );
    Exit::Misconfigured
}

/// Bold, where that is wanted.
fn bold(text: &str) -> String {
    let no_color = config::process_environment("NO_COLOR");
    if logger::colour_wanted(&io::stdout(), no_color.as_deref()) && io::stdout().is_terminal() {
        format!("\u{1b}[1m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}
