"""Why a start takes longer than it usually does."""
