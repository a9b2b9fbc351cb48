from ami_agent.cli import main

raise SystemExit(main())
